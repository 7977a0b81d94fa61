import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { compose } from '../../../lib/compose.ts'
import { REBUILD, RECORDS, ROOT } from '../../../lib/layout.ts'
import { goodVersions } from '../../../lib/release/release.ts'
import { script, sh } from '../../../lib/shell.ts'
import { grafana, queue, sql, startBackup, store } from '../backup.ts'
import { local } from '../engine.ts'
import {
  envWith,
  inContainer,
  onServer,
  operatorEnv,
  outputHas,
  rehearsal,
  runScript,
  said,
  secretsInOutput,
  servedVersion,
  serverRead,
  serverSurvey,
  startScript,
} from '../harness.ts'
import { SERVER } from '../names.ts'
import { CONTENT, DATA, properties } from '../restore-data.ts'
import { AGE_IDENTITY } from '../s3.ts'
import { inServer, loseServer, startServer, until } from '../server.ts'
import { putRehearsalFiles, trustRegistry, writeOperatorEnv } from '../setup.ts'

const SOAK = process.env.SOAK === '1'
const test = suite('a lost server, made again from the object store')

const toBlank = ['--to-blank', '--confirm', SERVER.address]
/** What belongs to a machine, and not to the stack. */
const OF_THE_MACHINE = '^(DEPLOY_GID|POSTGRES_(VOLUME|CPUS|MEMORY|SHARED_BUFFERS|EFFECTIVE_CACHE_SIZE))='

const inBackup = async (text: string) => {
  const { code, stdout, stderr } = await inContainer('backup-service', script(text))
  assert.is(code, 0, stderr)
  return stdout
}

/** Everything that must be there again. */
const state = async () => ({
  rows: await sql('kgc', CONTENT),
  database: await sql('postgres', properties('kgc')),
  logins: await sql('postgres', 'SELECT rolname, rolcanlogin, rolpassword FROM pg_authid ORDER BY 1'),
  files: await inBackup(
    `cd /data/uploads && find számla -printf '%p %m %U %G %T@\\n' | sort; sha256sum számla/kép; stat -c '%n %a %u %g' /data/*-files /data/uploads`,
  ),
  jobs: await queue('lrange queue:kept 0 -1'),
  grafana: await grafana('SELECT * FROM kept'),
  secrets: await serverRead(
    script(
      `cd ${ROOT}; grep -vE '${OF_THE_MACHINE}' .env | sort | sha256sum; sha256sum certs/site.pem secrets/*/users.acl; stat -c '%a %U %n' .env certs/site.pem secrets/*/users.acl`,
    ),
  ),
})
let before: Awaited<ReturnType<typeof state>>
let history: string[] = []

/** The hoster gives a new one, with another host key. */
async function blankServer(): Promise<void> {
  await loseServer()
  await startServer()
  await writeOperatorEnv()
  await onServer(trustRegistry)
}

test.before(async () => {
  await rehearsal()
  if ((await sql('kgc', `SELECT to_regnamespace('"Számlák 2026"') IS NULL`)) === 't') await sql('kgc', DATA)
  await local.read(
    inServer(
      script(
        `cd /var/lib/docker/volumes/kgc_uploads/_data && mkdir -p számla && head -c 200000 /dev/urandom > számla/kép && chmod 640 számla/kép && chown -R 1000:1001 számla .`,
      ),
    ),
  )
  await queue('del queue:kept')
  await queue('rpush queue:kept one two')
  await grafana("CREATE TABLE IF NOT EXISTS kept (word text); DELETE FROM kept; INSERT INTO kept VALUES ('dashboard')")
  const run = await startBackup()
  assert.is(run.code, 0, run.stderr)
  before = await state()
  history = goodVersions((await serverSurvey()).records)
})

// The log of a cluster that is gone; the next one begins its own.
test.after(async () => {
  const open = await store()
  await open.remove('kgc/pitr/', '')
  open.close()
})

test('a server that has a stack is refused, and what was found is named', async () => {
  const run = await runScript('restore', toBlank)
  assert.is(run.code, 2, said(run))
  assert.match(run.stderr, /is not blank:\n {2}\/opt\/kgc\/\.env\n[\s\S]*volume kgc_uploads[\s\S]*Nothing was touched/)
})

async function killInTheMiddle(): Promise<void> {
  const killed = startScript('restore', toBlank)
  await until(
    async () => /Count the rows of/.test(killed.output.stderr) || killed.child.exitCode !== null,
    'a database',
    240,
  )
  killed.child.kill('SIGKILL')
  assert.is((await killed.ended).code, null, said(await killed.ended))
  const backup = await startBackup()
  assert.is(backup.code, 3, backup.stderr)
  assert.match(backup.stderr, /the rebuild of this server/)

  const another = await runScript('restore', [...toBlank, '--before', '2026-01-01 00:00'])
  assert.is(another.code, 2, said(another))
  assert.match(another.stderr, /A rebuild from .* is under way/)
  console.log(`  killed after ${(await killed.ended).seconds.toFixed(0)} s`)
}

test(`${SOAK ? 'killed in the middle, the same command completes it' : 'one command brings everything back'}: rows, files, jobs, Grafana, secrets, release and history`, async () => {
  const version = await servedVersion()
  await blankServer()

  const asked = await runScript('restore', ['--to-blank'])
  assert.is(asked.code, 2, said(asked))
  assert.match(asked.stderr, new RegExp(`becomes ${operatorEnv().DOMAIN} as it was .*release ${version}`, 's'))
  const elsewhere = await runScript('restore', ['--env', envWith({ DOMAIN: 'other.kgc.test' }), ...toBlank])
  assert.is(elsewhere.code, 2, said(elsewhere))
  assert.match(elsewhere.stderr, /The backup is of .*, and DOMAIN here is other\.kgc\.test/)
  assert.is(await serverRead(sh`ls ${ROOT}`), '')

  if (SOAK) await killInTheMiddle()
  const run = await runScript('restore', toBlank)
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, new RegExp(`was rebuilt from .* and serves ${version}`))
  console.log(`  rebuilt in ${run.seconds.toFixed(0)} s`)
  await putRehearsalFiles()

  assert.is(await servedVersion(), version)
  assert.equal(await state(), before)
  assert.is(await sql('postgres', "SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%SCRAM%$%'"), '0')
  assert.equal(goodVersions((await serverSurvey()).records).sort(), history.sort())
  assert.is((await serverRead(sh`ls ${ROOT}/state`)).includes(REBUILD.split('/')[1] ?? ''), false)
  assert.match(await serverRead(sh`cat ${`${ROOT}/${RECORDS}`}`), /"version":"v1"/)
})

test('the rebuilt server is one like any other: as bootstrap-server.ts wants it, backed up, rolled back', async () => {
  for (const [name, ...args] of [
    ['bootstrap-server', '--check'],
    ['backup'],
    ['deploy', 'v2'],
    ['rollback', '--to', 'v1'],
    ['deploy', 'v2'],
  ] as const) {
    const run = await runScript(name, [...args])
    assert.is(run.code, 0, said(run))
  }
})

if (SOAK)
  test('with PITR=on the databases come from the log: what was written after the backup is there', async () => {
    const asDeploy = (text: string) => serverRead(script(`cd ${ROOT}\n${text}`), 'deploy')
    const pitr = `docker exec -u postgres kgc-pitr-1`
    const backedUp = () =>
      until(
        async () => (await asDeploy(`${pitr} /opt/pitr/keep.sh due || echo later`)) === '',
        'a backup of the log',
        300,
      )
    await asDeploy(`echo PITR=on >> .env
docker exec kgc-postgres-1 psql -U postgres -XAtqc 'SELECT 1'
(${compose(sh`up -d --no-deps --wait --wait-timeout 60 postgres`).shell})
${compose(sh`up -d --no-deps pitr`).shell}`)
    await backedUp()
    assert.is((await startBackup()).code, 0)
    await sql('kgc', "INSERT INTO work (id) VALUES ('after the backup') ON CONFLICT DO NOTHING")
    const rows = await sql('kgc', CONTENT)
    await sql('kgc', 'SELECT txid_current(), pg_switch_wal()')
    await until(
      async () =>
        (await asDeploy(`${pitr} /opt/pitr/keep.sh gap`)) === '' &&
        (await sql('kgc', 'SELECT last_archived_time > now() - interval $$20 s$$ FROM pg_stat_archiver')) === 't',
      'the log in S3',
      120,
    )
    await blankServer()
    const run = await runScript('restore', toBlank)
    assert.is(run.code, 0, said(run))
    console.log(`  rebuilt from the log in ${run.seconds.toFixed(0)} s`)
    await putRehearsalFiles()
    assert.is(await sql('kgc', CONTENT), rows)
    assert.is(await sql('kgc', 'SELECT count(*) FROM work WHERE id = $$after the backup$$'), '1')
    assert.not.match((await runScript('restore', ['--status'])).stdout, /cluster/)
    await backedUp()

    await blankServer()
    const fromDumps = await runScript('restore', [...toBlank, '--before', new Date().toISOString()])
    assert.is(fromDumps.code, 0, said(fromDumps))
    await putRehearsalFiles()
    assert.is(await sql('kgc', 'SELECT count(*) FROM work WHERE id = $$after the backup$$'), '0')
    assert.is(await asDeploy('grep -c ^PITR= .env || true'), '0')
  })

test('shows no secret', () => {
  assert.equal(secretsInOutput(), [])
  assert.not(outputHas(/AGE-SECRET-KEY-\S+/.exec(readFileSync(AGE_IDENTITY, 'utf8'))?.[0] ?? ''))
})

test.run()
