import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Manifest, Stored } from '../../lib/backup/manifest.ts'
import { parseBlank } from '../../lib/rebuild/blank.ts'
import { assertRebuildable, describeRebuild, partsOf } from '../../lib/rebuild/plan.ts'
import { envForNew, readSecrets, servedRelease } from '../../lib/rebuild/secrets.ts'

const test = suite('a blank server from a backup: what is decided before anything is touched')

const GIB = 1024 ** 3
const part = (key: string): Stored => ({
  ...{ key, rawBytes: GIB, rawSha256: '', storedBytes: GIB, storedSha256: '', parts: 1, partSize: 1, seconds: 1 },
})
const MANIFEST = {
  ...{ run: 'r', host: 'kgc-erp.hu', started: '2026-11-23T01:00:00.000Z', failed: [], recipients: ['age1ours'] },
  databases: [{ ...part('kgc'), name: 'kgc', size: 2 * GIB }],
  ...{ globals: part('globals'), redis: part('redis'), secrets: part('secrets') },
} as unknown as Manifest
const HAND = { recipients: ['age1ours'], localFree: 10 * GIB, serverFree: 100 * GIB }

test('a server with nothing is blank, one with anything of a stack is refused, and one that a rebuild began is gone on with', () => {
  assert.is(parseBlank('new', ''), undefined)
  assert.throws(
    () => parseBlank('new', 'found=/opt/kgc/.env\nfound=volume kgc_uploads'),
    /not blank:[\s\S]*kgc_uploads[\s\S]*Nothing was/,
  )
  assert.equal(
    parseBlank(
      'new',
      'found=/opt/kgc/.env\nbegun={"run":"r","fromLog":true}\nbegun={"done":"server"}\nbegun={"done":"kgc"}',
    ),
    {
      run: 'r',
      fromLog: true,
      done: ['server', 'kgc'],
    },
  )
})

test('what describes the old machine is not taken over, everything else is', () => {
  const { env, leftOut } = envForNew(
    "DOMAIN=a.hu\nDEPLOY_GID=1001\nPOSTGRES_CPUS=8\nPOSTGRES_VOLUME=kgc_postgres-data-x\nPITR=on\nPITR_ENCRYPTION_KEY=k\nJWT_SECRET='a b'\n",
  )
  assert.is(env, "DOMAIN=a.hu\nPITR_ENCRYPTION_KEY=k\nJWT_SECRET='a b'\n")
  assert.equal(leftOut, ['DEPLOY_GID', 'POSTGRES_CPUS', 'POSTGRES_VOLUME', 'PITR'])
})

test('the release that served is the last good one, and is known from the secrets alone', () => {
  const folder = mkdtempSync(join(tmpdir(), 'kgc-rebuild-test-'))
  mkdirSync(join(folder, 'state'))
  const record = (version: string, outcome: string) =>
    `${JSON.stringify({ id: version, version, outcome, images: { backend: 'b', frontend: 'f' } })}\n`
  writeFileSync(join(folder, 'state/releases.jsonl'), record('v1', 'good') + record('v2', 'good') + record('v3', 'bad'))
  writeFileSync(join(folder, '.env'), 'DOMAIN=a.hu\n')
  const tar = (...names: string[]) => spawnSync('tar', ['-c', '-C', folder, ...names]).stdout
  const { values, records } = readSecrets(tar('.env', 'state/releases.jsonl'))
  assert.is(values.DOMAIN, 'a.hu')
  assert.is(servedRelease(records)?.version, 'v2')
  assert.is(servedRelease(readSecrets(tar('.env')).records), undefined)
  assert.throws(() => readSecrets(tar('state')), /no \.env/)
})

test('says everything that makes it impossible, at once', () => {
  assert.is(assertRebuildable(MANIFEST, HAND).key, 'secrets')
  assert.is(assertRebuildable(MANIFEST, { ...HAND, serverFree: undefined }).key, 'secrets')
  assert.throws(
    () =>
      assertRebuildable(
        { ...MANIFEST, secrets: undefined },
        { recipients: ['age1other'], localFree: 1, serverFree: 1 },
      ),
    /no secrets[\s\S]*does not open it: it is age1other[\s\S]*for downloads, and this needs 3\.2 GB[\s\S]*disk has/,
  )
})

test('fetches what the backup has, and names what it is and what it is not', () => {
  assert.equal(
    partsOf(MANIFEST).map(({ name }) => name),
    ['roles', 'kgc', 'queue'],
  )
  assert.equal(
    partsOf(MANIFEST, true).map(({ name }) => name),
    ['queue'],
  )
  const text = describeRebuild(
    'new',
    MANIFEST,
    'v7',
    { done: ['server'], fromLog: false, leftOut: ['PITR'] },
    new Date('2026-11-23T03:00:00Z'),
  )
  assert.match(
    text,
    /^new becomes kgc-erp\.hu as it was 2 h 0 min ago.*\n.*release v7[\s\S]*PITR will be off[\s\S]*Done already: server/,
  )
})

test.run()
