import { readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readCatalog } from '../../../lib/backup/catalog.ts'
import { MANIFEST, type Manifest, parseManifest, runKey } from '../../../lib/backup/manifest.ts'
import { type ObjectStore, openStore } from '../../../lib/backup/object-store.ts'
import { loadConfig } from '../../../lib/config.ts'
import { createLog } from '../../../lib/log.ts'
import { withDownloads } from '../../../lib/restore/fetch.ts'
import { openEncrypted, readIdentities } from '../../../lib/restore/identity.ts'
import { pickDatabases, pickRun } from '../../../lib/restore/plan.ts'
import { fill, psql, spool, withWorkshop } from '../../../lib/restore/server.ts'
import { COUNT_ROWS, createBeside } from '../../../lib/restore/sql.ts'
import { script, sh } from '../../../lib/shell.ts'
import { grafana, queue } from '../backup.ts'
import { local } from '../engine.ts'
import {
  ENV_FILE,
  envWith,
  front,
  onServer,
  operatorEnv,
  type Run,
  rehearsal,
  runScript,
  said,
  secretsInOutput,
  servedVersion,
  serverRead,
  startScript,
} from '../harness.ts'
import { startLoad } from '../load.ts'
import { inState } from '../names.ts'
import { CONTENT, DATA, LARGE, properties } from '../restore-data.ts'
import { inServer, until } from '../server.ts'

const test = suite('restore')

const SOAK = process.env.SOAK === '1'
const BESIDE = /_(restore|old|copy)_\d{8}t\d{6}$/

let store: ObjectStore
let prefix = ''
/** The one good backup that every test starts from, and what was in it. */
let good: Manifest
let content = ''
let uploads = ''
const forgedRuns: string[] = []

const inUploads = (text: string) =>
  local.read(inServer(script(`set -e; cd /var/lib/docker/volumes/kgc_uploads/_data; ${text}`)))
const STATE_OF_UPLOADS = `find számla -printf '%p %m %U %G %T@\n' | sort; sha256sum számla/kép`

const sql = (text: string, database = 'postgres') => serverRead(psql(text, database))
const restore = (args: string[], env: Record<string, string> = {}) =>
  runScript('restore', Object.keys(env).length > 0 ? ['--env', envWith(env), ...args] : args)
const databases = async () => (await sql('SELECT datname FROM pg_database ORDER BY 1')).split('\n')
const beside = async () => (await databases()).filter((name) => BESIDE.test(name))
const restoreKgc = (args: string[]) => restore(['--db', 'kgc', '--confirm', 'kgc', ...args])
const services = () =>
  serverRead(
    script(
      `docker ps -aq --filter label=com.docker.compose.project=kgc | xargs docker inspect -f '{{.Name}} {{.State.Running}} {{.HostConfig.RestartPolicy.Name}}' | sort; docker ps -aq --filter name=kgc-restore`,
    ),
  )
/** Everything that a restore could touch before it swaps. */
const untouched = async () => [await databases(), await sql(COUNT_ROWS, 'kgc'), await services()]
const failsWith = (run: Run, code: number, message: RegExp) => {
  assert.is(run.code, code, said(run))
  assert.match(run.stderr, message, said(run))
}

async function dropBeside(): Promise<void> {
  for (const name of await beside()) await sql(`DROP DATABASE ${name} WITH (FORCE)`)
}

/** A run of its own made from the good one, with other objects or another manifest. */
async function forgeRun(
  change: (manifest: Manifest, kgc: Manifest['databases'][number]) => void,
  object?: (content: Buffer) => Buffer,
): Promise<string> {
  const forged = structuredClone(good)
  const kgc = forged.databases.find(({ name }) => name === 'kgc')
  assert.ok(kgc)
  forged.run = `${good.run}-${Math.random().toString(36).slice(2, 8)}`
  forgedRuns.push(forged.run)
  // Older than the good one, so that none of them is ever the newest.
  forged.started = '2026-01-01T00:00:00.000Z'
  if (object) {
    const chunks = []
    for await (const chunk of store.get(kgc.key)) chunks.push(chunk)
    kgc.key = runKey(prefix, forged.run, 'kgc')
    kgc.versionId = undefined
    const bytes = object(Buffer.concat(chunks))
    await store.put(
      kgc.key,
      (async function* () {
        yield bytes
      })(),
    )
  }
  change(forged, kgc)
  await store.putText(runKey(prefix, forged.run, MANIFEST), JSON.stringify(forged))
  return forged.run
}

test.before(async () => {
  await rehearsal()
  const { objectStore } = loadConfig(ENV_FILE, ['objectStore'])
  store = await openStore(objectStore)
  prefix = objectStore.S3_PREFIX
  await dropBeside()
  await sql(`DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'auditor') THEN
    REVOKE ALL ON DATABASE kgc FROM auditor; END IF; END $$`)
  await sql(
    'DROP SCHEMA IF EXISTS "Számlák 2026" CASCADE; DROP TABLE IF EXISTS gyors, parts; DROP SEQUENCE IF EXISTS receipt; DROP EXTENSION IF EXISTS pg_trgm; SELECT lo_unlink(oid) FROM pg_largeobject_metadata; DROP ROLE IF EXISTS auditor',
    'kgc',
  )
  await sql(DATA, 'kgc')
  await sql("INSERT INTO work (id) VALUES ('in the backup') ON CONFLICT DO NOTHING", 'kgc')
  // Horilla's own migration will not be able to work on what is backed up.
  await sql(
    `DROP EVENT TRIGGER IF EXISTS no;
CREATE OR REPLACE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE FUNCTION no()`,
    'horilla',
  )
  await inUploads(
    `rm -rf számla ../../kgc_*/_data/.files_*; mkdir -p számla; echo one > 'számla/a b'; head -c 200000 /dev/urandom > számla/kép; chmod 640 számla/kép; chown -R 1000:1001 számla`,
  )
  uploads = await inUploads(STATE_OF_UPLOADS)
  await queue('del queue:kept')
  await queue('rpush queue:kept one two')
  await grafana("CREATE TABLE IF NOT EXISTS kept (word text); DELETE FROM kept; INSERT INTO kept VALUES ('dashboard')")
  content = await sql(CONTENT, 'kgc')
  console.log((await serverRead(sh`docker exec kgc-backup-service-1 backup`)).split('\n').pop())
  await sql('DROP EVENT TRIGGER no; DROP FUNCTION no()', 'horilla')
  const runs = await store.list(`${prefix}/runs/`)
  const newest = runs.filter(({ key }) => key.endsWith(`/${MANIFEST}`)).sort((a, b) => +b.modified - +a.modified)[0]
  good = parseManifest((await store.getText(newest?.key ?? '')) ?? '')
})
test.after(async () => {
  for (const run of forgedRuns) await store.remove(runKey(prefix, run, ''), runKey(prefix, run, MANIFEST))
  await dropBeside()
  store.close()
})

test('lists the backups from the bucket alone, with nothing but its keys', async () => {
  const only = Object.entries(operatorEnv()).filter(([name]) => name.startsWith('S3_'))
  const file = inState('test-s3-only.env')
  writeFileSync(file, only.map(([name, value]) => `${name}=${value}\n`).join(''), { mode: 0o600 })
  const run = await runScript('restore', ['--list', '--env', file])
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, new RegExp(`^${good.run} .* complete `, 'm'))
})

test('a dry run prints what would be lost and every command, and changes nothing', async () => {
  const before = await untouched()
  const run = await restore(['--db', 'kgc', '--dry-run'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, /kgc goes back \d+ min, to 2026[\s\S]*pg_restore -e -j[\s\S]*RENAME TO/)
  assert.equal(await untouched(), before)
})

test('asks for the name, and takes no other', async () => {
  failsWith(await restore(['--db', 'kgc']), 2, /Lost from what serves: [\s\S]*Give --confirm kgc/)
  failsWith(await restore(['--db', 'kgc', '--confirm', 'yes']), 2, /--confirm yes is not kgc/)
  assert.equal(await beside(), [])
})

test('refuses, before anything is touched, what cannot work', async () => {
  const other = inState('other-identity.txt')
  const { generateX25519Identity } = await import('age-encryption')
  writeFileSync(other, `${await generateX25519Identity()}\n`, { mode: 0o600 })
  const before = await untouched()
  const args = (run: string) => ['--db', 'kgc', '--confirm', 'kgc', '--run', run]
  failsWith(await restore(args(good.run), { BACKUP_IDENTITY_FILE: other }), 1, /does not open this backup/)
  failsWith(await restore(args('nope')), 2, /There is no backup nope/)
  failsWith(await restore(['--db', 'invoices']), 2, /no database invoices\. It has/)
  const newer = await forgeRun((manifest) => {
    manifest.server.versionNum = 160004
    manifest.server.systemIdentifier = '7'
    manifest.databases = manifest.databases.map((one) => ({ ...one, size: 1e15 }))
  })
  const refused = await restore(args(newer))
  failsWith(refused, 1, /of PostgreSQL 16, and the server has 15/)
  failsWith(refused, 1, /of another server/)
  failsWith(refused, 1, /disk has .* free, and this needs/)
  assert.equal(await untouched(), before)
})

const FLIPS = SOAK ? 100 : 3

test(`notices a flipped bit at ${FLIPS} random places, and an object cut short, before a database is touched`, async () => {
  const before = await untouched()
  for (let i = 0; i < FLIPS; i++) {
    const at = Math.random()
    const flipped = await forgeRun(
      () => {},
      (bytes) => {
        const where = Math.floor(at * bytes.length)
        bytes[where] = (bytes[where] ?? 0) ^ (1 << (i % 8))
        return bytes
      },
    )
    failsWith(await restoreKgc(['--run', flipped]), 1, /its content is not what was stored/)
  }
  const short = await forgeRun(
    () => {},
    (bytes) => bytes.subarray(0, -1),
  )
  failsWith(await restoreKgc(['--run', short]), 1, /it has \d+ bytes, and had \d+ when it was stored/)
  assert.equal(await untouched(), before)
})

test('a manifest that says otherwise than the dump is noticed beside, and what was made is removed', async () => {
  const before = await untouched()
  const raw = await forgeRun((_, kgc) => {
    kgc.rawSha256 = '0'.repeat(64)
  })
  failsWith(await restoreKgc(['--run', raw]), 1, /unpacked dump of kgc is not what was backed up/)
  const rows = await forgeRun((_, kgc) => {
    kgc.rows = { ...kgc.rows, 'public.gyors': 501, 'public.gone': 1 }
  })
  const run = await restoreKgc(['--run', rows])
  failsWith(run, 1, /public\.gyors: 500 rows instead of 501[\s\S]*public\.gone: missing rows instead of 1/)
  assert.match(run.stderr, /What served before serves; nothing of it was touched/)
  assert.equal(await untouched(), before)
})

test('restores while the application writes: all of it as it was, owner, grants and settings kept, nothing lost', async () => {
  const kept = await sql(properties('kgc'))
  await sql(
    'DELETE FROM "Számlák 2026"."Tétel; drop" WHERE id % 2 = 0; DROP TABLE gyors; SELECT lo_unlink(4242)',
    'kgc',
  )
  await sql("INSERT INTO work (id) VALUES ('after the backup')", 'kgc')
  const load = startLoad(front(), { rate: 20, websockets: 0 })
  const run = startScript('restore', ['--db', 'kgc', '--confirm', 'kgc'], { GITHUB_ACTIONS: 'true' })
  try {
    await until(async () => run.output.stderr.includes('::group::Send kgc'), 'the restore to begin')
    failsWith(await runScript('deploy', ['v2']), 3, /Another run holds the lock .* restore of kgc by/)
    const ended = await run.ended
    assert.is(ended.code, 0, said(ended))
    console.log(`  ${ended.stdout.split('\n').find((line) => line.includes('away for'))}`)
  } finally {
    const report = await load.stop()
    const lost = report.lost.map(({ msSinceStart }) => msSinceStart)
    console.log(`  requests failed from the first to the last for ${(Math.max(...lost) - Math.min(...lost)) / 1000} s`)
    const [old = ''] = (await beside()).filter((name) => name.startsWith('kgc_old_'))
    await sql(`ALTER DATABASE ${old} ALLOW_CONNECTIONS true`)
    const ids = new Set([
      ...(await sql('SELECT id FROM work', 'kgc')).split('\n'),
      ...(await sql('SELECT id FROM work', old)).split('\n'),
    ])
    assert.equal(
      report.acknowledged.filter((id) => !ids.has(id)),
      [],
    )
    assert.ok(ids.has('after the backup'))
    await sql(`ALTER DATABASE ${old} ALLOW_CONNECTIONS false`)
  }
  assert.is(await sql(CONTENT, 'kgc'), content)
  assert.is(await sql(properties('kgc')), kept)
  assert.is(await sql('SELECT count(*) FROM work WHERE id = $$after the backup$$', 'kgc'), '0')
  assert.is(await sql('SELECT count(*) > 0 FROM pg_stats WHERE tablename = $$gyors$$', 'kgc'), 't')
})

test('--undo brings back what served before, and can itself be undone', async () => {
  const run = await restore(['--undo', '--confirm', 'kgc'])
  assert.is(run.code, 0, said(run))
  assert.is(await sql('SELECT count(*) FROM work WHERE id = $$after the backup$$', 'kgc'), '1')
  if (SOAK) {
    assert.is((await restore(['--undo', '--confirm', 'kgc'])).code, 0)
    assert.is(await sql(CONTENT, 'kgc'), content)
  }
})

test('an old database is dropped only when it is named, and one that serves cannot be named', async () => {
  const [old = ''] = await beside()
  failsWith(await restore(['--drop', 'kgc', '--confirm', 'kgc']), 2, /kgc is not among what restores left/)
  failsWith(await restore(['--drop', old]), 2, /there is no way back/)
  const run = await restore(['--drop', old, '--confirm', old])
  assert.is(run.code, 0, said(run))
  assert.not.match((await restore(['--status'])).stdout, new RegExp(old))
})

test('--keep-side leaves a copy to take one table from, and what serves alone', async () => {
  const before = await sql(COUNT_ROWS, 'kgc')
  const run = await restore(['--db', 'kgc', '--keep-side'])
  assert.is(run.code, 0, said(run))
  const [copy = ''] = await beside()
  assert.match(copy, /^kgc_copy_/)
  assert.is(await sql(CONTENT, copy), content)
  assert.is(await sql(COUNT_ROWS, 'kgc'), before)

  const [, command = ''] =
    /`(docker exec kgc-postgres-1 psql [^`]*COPY work[^`]*)`/.exec(readFileSync('RUNBOOK.md', 'utf8')) ?? []
  await sql('DELETE FROM work', 'kgc')
  await serverRead(script(command.replace('kgc_copy_TIME', copy)), 'deploy')
  assert.is(await sql('SELECT id FROM work', 'kgc'), await sql('SELECT id FROM work', copy))
  assert.match(await sql('SELECT id FROM work', 'kgc'), /^in the backup$/m)
})

test('a restored database that its application cannot work with is swapped back', async () => {
  await dropBeside()
  const before = await untouched()
  const run = await restore(['--db', 'horilla', '--confirm', 'horilla'])
  failsWith(run, 4, /application did not become healthy[\s\S]*It was exchanged back: what served before serves/)
  assert.equal((await untouched())[2], before[2])
  assert.is(await sql('SELECT count(*) FROM pg_event_trigger', 'horilla'), '0')
})

test('restores the files with owner, rights and times, keeps what was there, and undoes it', async () => {
  await inUploads(`rm számla/kép; echo changed > 'számla/a b'; echo later > later`)
  const run = await restore(['--files', '--confirm', 'files'])
  assert.is(run.code, 0, said(run))
  assert.is(await inUploads(STATE_OF_UPLOADS), uploads)
  const status = await restore(['--status'])
  const [old = ''] = /files_old_\w+/.exec(status.stdout) ?? []
  assert.is(await inUploads(`cat .${old}/later '.${old}/számla/a b'`), 'later\nchanged')
  if (SOAK) {
    assert.is((await restore(['--undo', '--confirm', 'files'])).code, 0)
    assert.is(await inUploads(`cat later 'számla/a b'`), 'later\nchanged')
    await inUploads('rm -rf ../../kgc_*/_data/.files_*')
    return
  }
  const dropped = await restore(['--drop', old, '--confirm', old])
  assert.is(dropped.code, 0, said(dropped))
  assert.is(await inUploads('ls -d .files_* 2> /dev/null || true'), '')
})

test('a disk that fills up while a dump arrives leaves what serves, and everything works when it is emptied', async () => {
  const filler = '/opt/kgc/filler'
  const serves = await servedVersion()
  const run = startScript('restore', ['--db', 'kgc', '--confirm', 'kgc'], { GITHUB_ACTIONS: 'true' })
  try {
    await until(async () => run.output.stderr.includes('::group::Download kgc'), 'the download')
    await serverRead(script(`fallocate -l $(( $(df -Pk /opt/kgc | awk 'NR > 1 { print $4 }') - 1024 ))K ${filler}`))
    const ended = await run.ended
    failsWith(ended, 1, /No space left on device[\s\S]*What served before serves/)
  } finally {
    await serverRead(sh`rm -f ${filler}`)
  }
  assert.is(await servedVersion(), serves)
  failsWith(await restore(['--db', 'kgc', '--confirm', 'kgc', '--dry-run']), 0, /Dry run/)
})

/** As the running script prints them. */
const STEPS = [
  'Download',
  'Lock',
  'Remove what dead',
  'Send',
  'Restore',
  'Count the rows',
  'Statistics',
  'Smoke',
  'Swap',
]
let moment = 0
for (const step of SOAK ? STEPS : ['Restore', 'Swap']) {
  test(`killed in the step ${step}: one whole database serves, and the next restore cleans up and works`, async () => {
    await dropBeside()
    await sql("INSERT INTO work (id) VALUES ('mark') ON CONFLICT DO NOTHING", 'kgc')
    const run = startScript('restore', ['--db', 'kgc', '--confirm', 'kgc'], { GITHUB_ACTIONS: 'true' })
    await Promise.race([until(async () => run.output.stderr.includes(`::group::${step}`), step), run.ended])
    moment = (moment + 167) % 700
    await sleep(moment)
    run.child.kill('SIGKILL')
    await run.ended
    // The exchange is one script on the server, which goes on.
    await until(async () => (await runScript('smoke-test')).code === 0, 'the site to be whole', 120)
    const next = await restore(['--db', 'kgc', '--confirm', 'kgc', '--wait', '60'])
    assert.is(next.code, 0, said(next))
    assert.is(await sql(CONTENT, 'kgc'), content)
    assert.is(await sql('SELECT count(*) FROM work WHERE id = $$mark$$', 'kgc'), '0')
    assert.equal(
      (await beside()).filter((name) => name.includes('_restore_')),
      [],
    )
    assert.not.match(await services(), / always|[0-9a-f]{12}$/)
  })
}

test('restores the queue of jobs and Grafana by themselves, and undoes it', async () => {
  await queue('del queue:kept')
  await queue('rpush queue:later three')
  await grafana('DROP TABLE kept')
  failsWith(await restore(['--queue']), 2, /jobs that were done since run again[\s\S]*Give --confirm queue/)
  for (const name of ['queue', 'grafana']) {
    const run = await restore([`--${name}`, '--confirm', name, '--run', good.run])
    assert.is(run.code, 0, said(run))
  }
  assert.is(await queue('lrange queue:kept 0 -1'), 'one\ntwo')
  assert.is(await queue('exists queue:later'), '0')
  assert.is(await grafana('SELECT * FROM kept'), 'dashboard')
  assert.is((await restore(['--undo', '--queue', '--confirm', 'queue'])).code, 0)
  assert.is(await queue('lrange queue:later 0 -1'), 'three')
  assert.is((await restore(['--undo', '--queue', '--confirm', 'queue'])).code, 0)
  assert.is(await queue('lrange queue:kept 0 -1'), 'one\ntwo')
})

if (SOAK)
  test('figures with 1.6 GB', async () => {
    await dropBeside()
    await onServer((host) => host.read(psql(LARGE, 'kgc'), { timeout: 1800 }))
    console.log(`  database: ${await sql("SELECT pg_size_pretty(pg_database_size('kgc'))")}`)
    const backup = await onServer((host) => host.read(sh`docker exec kgc-backup-service-1 backup`, { timeout: 1800 }))
    console.log(`  ${backup.split('\n').pop()}`)
    const run = await restore(['--db', 'kgc', '--confirm', 'kgc'])
    assert.is(run.code, 0, said(run))
    console.log(`${run.stderr}${run.stdout}  in all ${run.seconds.toFixed(1)} s`)
    const newest = pickRun(await readCatalog(store), {})
    const [kgc] = pickDatabases(newest, ['kgc'])
    assert.ok(kgc)
    const identities = readIdentities(inState('age-identity.txt'))
    await withDownloads(createLog(), store, [kgc], (files) =>
      onServer(async (host) => {
        for (const jobs of [1, 2, 1, 2])
          await withWorkshop(host, async () => {
            await spool(host, 'kgc', await openEncrypted(files.kgc ?? '', identities), () => {})
            await host.read(psql(createBeside('kgc_restore_20260101t000000', kgc, 'figures')))
            const began = performance.now()
            await fill(host, 'kgc_restore_20260101t000000', 'kgc', jobs)
            console.log(`  pg_restore -j ${jobs}: ${((performance.now() - began) / 1000).toFixed(1)} s`)
            await host.read(psql('DROP DATABASE kgc_restore_20260101t000000 WITH (FORCE)'))
          })
      }),
    )
    await dropBeside()
    await sql('DROP TABLE large_rows, large_documents, large_bytes', 'kgc')
  })

test('shows no secret', () => assert.equal(secretsInOutput(), []))

test.run()
