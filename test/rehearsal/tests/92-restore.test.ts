import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { MANIFEST, type Manifest, parseManifest, runKey } from '../../../lib/backup/manifest.ts'
import { type ObjectStore, openStore } from '../../../lib/backup/object-store.ts'
import { loadConfig } from '../../../lib/config.ts'
import { EXCHANGE } from '../../../lib/layout.ts'
import { partsOf } from '../../../lib/rebuild/plan.ts'
import { download } from '../../../lib/restore/fetch.ts'
import { psql } from '../../../lib/restore/server.ts'
import { COUNT_ROWS } from '../../../lib/restore/sql.ts'
import { script, sh } from '../../../lib/shell.ts'
import { grafana, queue, startBackup } from '../backup.ts'
import { docker, local } from '../engine.ts'
import {
  ENV_FILE,
  envWith,
  front,
  onServer,
  onTerminal,
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
import { inState, SERVER } from '../names.ts'
import { CONTENT, DATA, properties } from '../restore-data.ts'
import { inServer, until } from '../server.ts'

const test = suite('restore')

const SOAK = process.env.SOAK === '1'
/** The seconds that the applications of a database may be away. */
const AWAY_SECONDS = 30
const BESIDE = /_(restore|old|copy)_\d{8}t\d{6}$/

let store: ObjectStore
let prefix = ''
/** The one good backup that every test starts from, and what was in it. */
let good: Manifest
let content = ''
let uploads = ''
/** Owner, grants and settings of kgc. */
let kept = ''
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

/** Waits until the smoke test passes; what it said at last is in the error. */
async function siteIsWhole(limitSeconds: number): Promise<void> {
  let last: Run | undefined
  const passes = async () => {
    last = await runScript('smoke-test')
    return last.code === 0
  }
  await until(passes, 'the site to be whole', limitSeconds).catch(async (error) => {
    throw new Error(`${error.message}\n${last && said(last)}\n${await services()}`)
  })
}

async function dropBeside(): Promise<void> {
  for (const name of await beside()) await sql(`DROP DATABASE ${name} WITH (FORCE)`)
}

const bytesOf = async (key: string): Promise<Buffer> => {
  const chunks = []
  for await (const chunk of store.get(key)) chunks.push(chunk)
  return Buffer.concat(chunks)
}
const flip = (bytes: Buffer, where: number, bit: number): Buffer => {
  bytes[where] = (bytes[where] ?? 0) ^ (1 << bit)
  return bytes
}

/** A run of its own made from the good one, with another object for one of its databases or another manifest. */
async function forgeRun(
  change: (manifest: Manifest, one: Manifest['databases'][number]) => void,
  object?: (content: Buffer) => Buffer,
  name = 'kgc',
): Promise<string> {
  const forged = structuredClone(good)
  const kgc = forged.databases.find((one) => one.name === name)
  assert.ok(kgc)
  forged.run = `${good.run}-${Math.random().toString(36).slice(2, 8)}`
  forgedRuns.push(forged.run)
  // Older than the good one, so that none of them is ever the newest.
  forged.started = '2026-01-01T00:00:00.000Z'
  if (object) {
    const bytes = object(await bytesOf(kgc.key))
    kgc.key = runKey(prefix, forged.run, name)
    kgc.versionId = undefined
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
  kept = await sql(properties('kgc'))
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

test('objects without a manifest are no backup, and a manifest that cannot be read hides no other', async () => {
  const text = (key: string, content: string) => store.putText(key, content)
  forgedRuns.push('no-manifest', 'no-json')
  await text(runKey(prefix, 'no-manifest', 'kgc'), 'a dump that was cut off')
  await text(runKey(prefix, 'no-json', MANIFEST), '{"schema":1,')
  failsWith(await restoreKgc(['--run', 'no-manifest']), 2, /There is no backup no-manifest/)
  const older = await forgeRun((manifest) => {
    manifest.started = '2025-12-31T23:00:00.000Z'
  })
  const run = await restore(['--db', 'kgc', '--before', '2026-01-01 00:30', '--dry-run'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, new RegExp(`from the backup ${older} of `))
})

test('a dry run prints what would be lost and every command, and changes nothing', async () => {
  const before = await untouched()
  const run = await restore(['--db', 'kgc', '--dry-run'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, /kgc goes back \d+ min, to \d{4}-[\s\S]*pg_restore -e -j[\s\S]*RENAME TO/)
  assert.equal(await untouched(), before)
})

test('asks for the name, and takes no other', async () => {
  await sql("INSERT INTO work (id) VALUES ('typed')", 'kgc')
  const run = await restore(['--db', 'kgc'])
  failsWith(
    run,
    2,
    /kgc goes back \d+ min, to \d{4}-.* rows that were added \(.*public\.work 1\b[\s\S]*Give --confirm kgc/,
  )
  assert.match(run.stderr, new RegExp(`On ${SERVER.address.replaceAll('.', '\\.')}, from the backup ${good.run}`))
  failsWith(await restore(['--db', 'kgc', '--confirm', 'yes']), 2, /--confirm yes is not kgc/)
  const typed = await onTerminal('restore', ['--db', 'kgc'], /Type .* to go on/, 'kgd')
  assert.is(typed.code, 2, typed.shown)
  assert.match(typed.shown, /Type kgc to go on[\s\S]*Not confirmed; nothing was changed/)
  await sql("DELETE FROM work WHERE id = 'typed'", 'kgc')
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

/** Random places at which a bit of each object is flipped. */
const PLACES = { kgc: SOAK ? 100 : 20, others: SOAK ? 100 : 5 }

test('notices every single bit flipped in what is stored, databases, roles, secrets, queue and Grafana, as it comes in', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'kgc-flips-'))
  try {
    const { secrets } = good
    assert.ok(secrets)
    const objects = [...partsOf(good), { ...secrets, name: 'secrets' }]
    assert.equal(
      ['roles', 'kgc', 'queue', 'grafana'].filter((name) => !objects.some((one) => one.name === name)),
      [],
    )
    for (const object of objects) {
      const { name } = object
      const bytes = await bytesOf(object.key)
      const comesIn = (file: string) => {
        async function* get() {
          yield bytes
        }
        return download({ get }, object, join(folder, `${name}-${file}`)).then(
          () => 'taken',
          (error: Error) => error.message,
        )
      }
      assert.is(await comesIn('whole'), 'taken', name)
      for (let i = 0; i < (name === 'kgc' ? PLACES.kgc : PLACES.others); i++) {
        const where = Math.floor(Math.random() * bytes.length)
        flip(bytes, where, i % 8)
        assert.match(await comesIn(`${i}`), /its content is not what was stored/, `${name}, byte ${where}`)
        flip(bytes, where, i % 8)
      }
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
})

const FLIPS = SOAK ? 20 : 1

test(`notices a bit flipped in the bucket (${FLIPS} times), and an object cut short, before a database is touched`, async () => {
  const before = await untouched()
  for (let i = 0; i < FLIPS; i++) {
    const at = Math.random()
    const flipped = await forgeRun(
      () => {},
      (bytes) => flip(bytes, Math.floor(at * bytes.length), i % 8),
    )
    failsWith(await restoreKgc(['--run', flipped]), 1, /its content is not what was stored/)
  }
  const short = await forgeRun(
    () => {},
    (bytes) => bytes.subarray(0, -1),
  )
  failsWith(await restoreKgc(['--run', short]), 1, /it has \d+ bytes, and had \d+ when it was stored/)
  const second = await forgeRun(
    () => {},
    (bytes) => flip(bytes, bytes.length >> 1, 1),
    'twenty',
  )
  const both = await restore(['--db', 'kgc,twenty', '--confirm', 'kgc,twenty', '--run', second])
  failsWith(both, 1, /twenty is damaged: its content is not what was stored/)
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
  const count = good.files?.files ?? 0
  const files = await forgeRun((manifest) => {
    if (manifest.files) manifest.files.files = count + 1
  })
  const fewer = await restore(['--files', '--confirm', 'files', '--run', files])
  failsWith(fewer, 1, new RegExp(`${count} files came back instead of the ${count + 1} that were backed up`))
  assert.is(await inUploads('ls -d .files_* 2> /dev/null || true'), '')
  assert.equal(await untouched(), before)
})

test('restores while the application writes: all of it as it was, owner, grants and settings kept, nothing lost', async () => {
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
    const backup = await startBackup()
    assert.is(backup.code, 3, `${backup.stdout}${backup.stderr}`)
    assert.match(backup.stderr, /Another backup, a restore or a migration is running/)
    const ended = await run.ended
    assert.is(ended.code, 0, said(ended))
    const [, away] = /were away for ([\d.]+) s/.exec(ended.stdout) ?? []
    console.log(`  kgc was away for ${away} s`)
    assert.ok(Number(away) < AWAY_SECONDS, `away for ${away} s`)
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
  assert.is(
    await sql("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%USING hnsw%' AND tablename = 'hasonló'", 'kgc'),
    '1',
  )
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

test('while a backup runs, a restore is refused before anything is touched', async () => {
  const holder = await serverRead(
    script('flock -F -n /opt/kgc/state/backup/lock sleep 60 > /dev/null 2>&1 < /dev/null & echo $!'),
  )
  const before = await untouched()
  try {
    failsWith(await restoreKgc([]), 3, /A backup is running/)
  } finally {
    await serverRead(sh`kill ${holder}`)
  }
  assert.equal(await untouched(), before)
})

const ADDED = 'CREATE TABLE added AS SELECT 1 AS n'
const hasAdded = (database: string) => sql("SELECT to_regclass('added') IS NOT NULL", database)

test('when one of several databases does not work with its application, none of them and no file is exchanged; what served meanwhile is kept', async () => {
  await dropBeside()
  await inUploads('echo later > later')
  await sql(ADDED, 'twenty')
  const before = await untouched()
  const run = await restore(['--db', 'twenty,horilla', '--files', '--confirm', 'twenty,horilla,files'])
  failsWith(run, 4, /application did not become healthy[\s\S]*It was exchanged back: what served before serves/)
  const copies = await beside()
  assert.equal(copies.map((name) => name.replace(/\d.*/, '')).sort(), ['horilla_copy_', 'twenty_copy_'])
  assert.is(await hasAdded(copies.find((name) => name.startsWith('twenty')) ?? ''), 'f')
  await dropBeside()
  assert.equal(await untouched(), before)
  assert.is(await sql('SELECT count(*) FROM pg_event_trigger', 'horilla'), '0')
  assert.is(await hasAdded('twenty'), 't')

  const [, files = ''] = /^later\n\.(files_copy_\w+)$/.exec(await inUploads('cat later; ls -d .files_*')) ?? []
  assert.match((await restore(['--status'])).stdout, new RegExp(`^${files} .*exchanged back`, 'm'))
  const dropped = await restore(['--drop', files, '--confirm', files])
  assert.is(dropped.code, 0, said(dropped))
  assert.is(await inUploads('cat later; ls -d .files_* 2> /dev/null || true'), 'later')
})

test('a smoke test that fails after the swap takes it back, and no row that was acknowledged meanwhile is lost', async () => {
  const load = startLoad(front(), { rate: 20, websockets: 0 })
  const run = startScript('restore', ['--db', 'kgc', '--confirm', 'kgc'], { GITHUB_ACTIONS: 'true' })
  let report: Awaited<ReturnType<typeof load.stop>> | undefined
  try {
    await until(async () => run.output.stderr.includes('::group::Swap kgc'), 'the swap', 120)
    // What `docker kill` ends stays stopped.
    await serverRead(sh`docker kill kgc-chatwoot-1`)
    failsWith(
      await run.ended,
      4,
      /checks passed before the swap and fail now:[\s\S]*Chatwoot[\s\S]*It was swapped back: what served before serves[\s\S]*took in meanwhile is kept/,
    )
  } finally {
    report = await load.stop()
    await serverRead(sh`docker start kgc-chatwoot-1`)
  }
  const [copy = ''] = await beside()
  assert.match(copy, /^kgc_copy_/)
  const rows = async (database: string) => (await sql('SELECT id FROM work', database)).split('\n')
  const [served, meanwhile] = [new Set(await rows('kgc')), new Set(await rows(copy))]
  assert.equal(
    report.acknowledged.filter((id) => !served.has(id) && !meanwhile.has(id)),
    [],
  )
  assert.ok(
    report.acknowledged.some((id) => !served.has(id)),
    'nothing was written meanwhile',
  )
  await dropBeside()
  await siteIsWhole(120)
})

test('restores everything in one outage, and one --undo takes all of it back', async () => {
  // As after the rebuild of a lost server: of another system, with grants and settings that were changed since.
  const working = await forgeRun((manifest) => {
    manifest.databases = manifest.databases.filter(({ name }) => name !== 'horilla')
    manifest.server.systemIdentifier = '7'
  })
  const names = good.databases.map(({ name }) => name).filter((name) => name !== 'horilla')
  await sql("ALTER DATABASE kgc SET work_mem = '9MB'")
  const changed = await sql(properties('kgc'))
  await sql("INSERT INTO work (id) VALUES ('after') ON CONFLICT DO NOTHING", 'kgc')
  await sql(ADDED, 'chatwoot')
  const run = await restore(['--all', '--other-server', '--run', working, '--confirm', [...names, 'files'].join(',')])
  assert.is(run.code, 0, said(run))
  assert.is(await sql(properties('kgc')), changed)
  assert.is(run.stderr.match(/✔ Swap /g)?.length, 1, said(run))
  console.log(`  ${/The applications of .* were away for [\d.]+ s/.exec(run.stdout)?.[0]}`)
  assert.is(await sql(CONTENT, 'kgc'), content)
  assert.is(await sql("SELECT count(*) FROM work WHERE id = 'after'", 'kgc'), '0')
  assert.equal([await hasAdded('twenty'), await hasAdded('chatwoot')], ['f', 'f'])
  assert.is(await inUploads(STATE_OF_UPLOADS), uploads)
  assert.is(await inUploads('ls later 2> /dev/null || true'), '')

  const undone = await restore(['--undo', '--confirm', 'chatwoot,files,kgc,twenty'])
  assert.is(undone.code, 0, said(undone))
  assert.is(await sql("SELECT count(*) FROM work WHERE id = 'after'", 'kgc'), '1')
  assert.equal([await hasAdded('twenty'), await hasAdded('chatwoot')], ['t', 't'])
  assert.is(await inUploads('cat later'), 'later')
  for (const database of ['twenty', 'chatwoot']) await sql('DROP TABLE added', database)
  await sql("ALTER DATABASE kgc SET work_mem = '7MB'")
  await dropBeside()
  await inUploads('rm -rf later ../../kgc_*/_data/.files_*')
})

// The restore of everything compares the files, too.
const withSoak = SOAK ? test : () => {}
withSoak('restores the files with owner, rights and times, keeps what was there, and undoes it', async () => {
  await inUploads(`rm számla/kép; echo changed > 'számla/a b'; echo later > later`)
  const run = await restore(['--files', '--confirm', 'files'])
  assert.is(run.code, 0, said(run))
  assert.is(await inUploads(STATE_OF_UPLOADS), uploads)
  const status = await restore(['--status'])
  const [old = ''] = /files_old_\w+/.exec(status.stdout) ?? []
  assert.is(await inUploads(`cat .${old}/later '.${old}/számla/a b'`), 'later\nchanged')
  const undone = await restore(['--undo', '--files', '--confirm', 'files'])
  assert.is(undone.code, 0, said(undone))
  assert.is(await inUploads(`cat later 'számla/a b'`), 'later\nchanged')
  const restored = (await inUploads('ls -d .files_old_*')).slice(1)
  assert.is.not(restored, old)
  const dropped = await restore(['--drop', restored, '--confirm', restored])
  assert.is(dropped.code, 0, said(dropped))
  assert.is(await inUploads('ls -d .files_* 2> /dev/null || true'), '')
})

const FULL = {
  'a dump arrives': '::group::Download kgc',
  ...(SOAK ? { 'it is restored': '::group::Restore kgc' } : {}),
}

for (const [when, group] of Object.entries(FULL))
  test(`a disk that fills up while ${when} leaves what serves, and everything works when it is emptied`, async () => {
    const filler = '/opt/kgc/filler'
    const serves = await servedVersion()
    const run = startScript('restore', ['--db', 'kgc', '--confirm', 'kgc'], { GITHUB_ACTIONS: 'true' })
    try {
      await until(async () => run.output.stderr.includes(group), when)
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
for (const step of SOAK ? STEPS : []) {
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
    await siteIsWhole(120)
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

const RESTARTS = {
  'the server': () => docker(sh`restart -t 0 ${SERVER.container}`, 120),
  "the restore's own container": () => serverRead(sh`docker kill -s KILL kgc-restore`),
  // What `docker kill` ends stays stopped.
  PostgreSQL: () => serverRead(script("kill -9 $(docker inspect -f '{{.State.Pid}}' kgc-postgres-1)")),
}
const CUTS: [keyof typeof RESTARTS, 'Restore kgc' | 'Swap'][] = [
  ['the server', 'Swap'],
  ...(SOAK
    ? ([
        ['the server', 'Restore kgc'],
        ["the restore's own container", 'Restore kgc'],
        ['PostgreSQL', 'Restore kgc'],
      ] as const)
    : []),
].map(([what, step]) => [what, step] as (typeof CUTS)[number])

for (const [what, step] of CUTS) {
  test(`${what} is killed in the step ${step}: the site comes back by itself, and the next restore completes what was cut off`, async () => {
    await dropBeside()
    await inUploads(`rm -rf ../../kgc_*/_data/.files_*; echo changed > 'számla/a b'`)
    await sql("INSERT INTO work (id) VALUES ('mark') ON CONFLICT DO NOTHING", 'kgc')
    const args = ['--db', 'kgc', '--files', '--confirm', 'kgc,files']
    const run = startScript('restore', args, { GITHUB_ACTIONS: 'true' })
    await Promise.race([until(async () => run.output.stderr.includes(`::group::${step}`), step, 120), run.ended])
    const note = sh`test -e ${`/opt/kgc/${EXCHANGE}`}`
    if (step === 'Swap')
      await until(async () => (await onServer((host) => host.probe(note))).code === 0, 'the exchange')
    await RESTARTS[what]()
    const ended = await run.ended
    assert.is.not(ended.code, 0, said(ended))
    await siteIsWhole(180)
    const mark = () => sql("SELECT count(*) FROM work WHERE id = 'mark'", 'kgc')
    if (step === 'Swap') {
      const status = await restore(['--status'])
      assert.match(status.stdout, /The exchange of kgc, files works now, or was cut off half way/, said(status))
    } else assert.is(await mark(), '1', said(ended))

    const next = await restore([...args, '--wait', '60'])
    assert.is(next.code, 0, said(next))
    assert.match(next.stderr, step === 'Swap' ? /Complete the exchange of kgc, files/ : /Swap/)
    assert.is(await sql(CONTENT, 'kgc'), content)
    assert.is(await mark(), '0')
    assert.is(await inUploads(STATE_OF_UPLOADS), uploads)
    const status = await restore(['--status'])
    assert.not.match(status.stdout, /exchange|not whole/)
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
  test("PostgreSQL's volume is lost: a deploy of what serves and --all --other-server bring everything back, roles too", async () => {
    await serverRead(
      script(
        `volume=$(docker inspect -f '{{range .Mounts}}{{.Name}} {{end}}' kgc-postgres-1 | grep -oE 'kgc_postgres-data\\S*'); docker rm -f kgc-postgres-1 kgc-pitr-1; docker volume rm $volume`,
      ),
    )
    const deployed = await runScript('deploy', [await servedVersion()])
    assert.is(deployed.code, 0, said(deployed))
    const working = await forgeRun((manifest) => {
      manifest.databases = manifest.databases.filter(({ name }) => name !== 'horilla')
    })
    const names = good.databases.map(({ name }) => name).filter((name) => name !== 'horilla')
    const args = ['--all', '--run', working, '--confirm', [...names, 'files'].join(',')]
    failsWith(await restore(args), 1, /of another server.*When that is meant: --other-server/)
    const run = await restore([...args, '--other-server'])
    assert.is(run.code, 0, said(run))
    assert.is(await sql(CONTENT, 'kgc'), content)
    assert.is(await sql(properties('kgc')), kept)
    assert.is((await runScript('smoke-test')).code, 0)
  })

test('shows no secret', () => assert.equal(secretsInOutput(), []))

test.run()
