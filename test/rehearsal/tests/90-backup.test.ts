import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DATABASES } from '../../../lib/backup/databases.ts'
import { openStore } from '../../../lib/backup/object-store.ts'
import { output } from '../../../lib/backup/pipeline.ts'
import { s3Client } from '../../../lib/backup/s3-client.ts'
import { BACKUP_FOLDER, BACKUP_LOCK, BACKUP_SERVICE, EXCHANGE, POSTGRES, ROOT } from '../../../lib/layout.ts'
import { script, sh } from '../../../lib/shell.ts'
import {
  catalog,
  changeState,
  decrypted,
  forgeRun,
  hideManifest,
  loadData,
  metricsFile,
  openUploads,
  processes,
  radosgw,
  readState,
  restic,
  sizeBelow,
  sql,
  startAgain,
  startBackup,
  startOnTerminal,
  store,
  versionsOf,
} from '../backup.ts'
import { docker } from '../engine.ts'
import {
  clearSink,
  onServer,
  rehearsal,
  runScript,
  said,
  secretsInOutput,
  serverRead,
  sinkMessages,
} from '../harness.ts'
import { S3, SERVER } from '../names.ts'
import { s3Keys, s3Settings } from '../s3.ts'
import { type Fault, faultyS3, type Seen } from '../s3-proxy.ts'
import { until } from '../server.ts'

const test = suite('backup')
const soak = process.env.SOAK === '1'
const MIB = 1024 ** 2

/** 40 MiB that do not compress: three parts. */
const THREE_PARTS = sh`head -c ${40 * MIB} /dev/urandom`
const isPart = ({ method, query }: Seen, number?: number) =>
  method === 'PUT' && query.has('partNumber') && (number === undefined || query.get('partNumber') === String(number))
const daysAgo = (days: number) => new Date(Date.now() - days * 24 * 3600_000).toISOString()
const isComplete = ({ method, query }: Seen) => method === 'POST' && query.has('uploadId')

/** Stores a stream through the faults, past the backup itself, and says how that ended. */
async function putThrough(decide: (seen: Seen) => Fault, { programs = THREE_PARTS, timeout = 20 } = {}) {
  const key = `test/${Date.now()}`
  const proxy = await faultyS3(decide)
  const faulty = await openStore({ ...s3Settings(), S3_ENDPOINT: proxy.endpoint, S3_TIMEOUT: timeout })
  const stop = new AbortController()
  const started = performance.now()
  try {
    const error = await faulty.put(key, output(programs, { what: 'The source', signal: stop.signal })).then(
      () => undefined,
      (reason: Error) => reason,
    )
    stop.abort()
    const real = await store()
    const found = await real.head(key)
    real.close()
    return { error, found, open: await openUploads(key), seconds: (performance.now() - started) / 1000 }
  } finally {
    faulty.close()
    await proxy.close()
  }
}

/** Parts that take their time: long enough to do something in the middle. */
const slowParts = (seen: Seen): Fault => (isPart(seen) ? { delayMs: 4000 } : 'pass')
const anUploadIsOpen = () => until(async () => (await openUploads('kgc/runs/')).length > 0, 'an upload')

/** A parent and its child in every transaction, until it is stopped. */
const WRITER = `DO $$ BEGIN FOR n IN 1..1000000 LOOP
  INSERT INTO billing.delivery VALUES (n); INSERT INTO billing.delivered VALUES (n); COMMIT; PERFORM pg_sleep(0.005);
END LOOP; END $$`
const STOP_WRITER = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'DO $$ BEGIN FOR n%'`
const rowsOf = async (table: string) => Number(await sql('kgc', `SELECT count(*) FROM ${table}`))

const VOLUMES = ['uploads', 'twenty-files', 'chatwoot-files', 'horilla-files']
/** In the volume of each application; one of them does not compress. */
const inVolumes = (command: (volume: string) => string) =>
  serverRead(
    script(VOLUMES.map((name) => `cd /var/lib/docker/volumes/kgc_${name}/_data && ${command(name)}`).join('\n')),
  )
const MAKE_FILES = (name: string) => `head -c ${name === 'uploads' ? 20 * MIB : 10} /dev/urandom > of-${name}`
/** Bytes of the repository of files: at first, and after each backup. */
const repository: number[] = []
const lookAtRepository = async () => repository.push(await sizeBelow('kgc/restic/'))

/** The most that the backup had on any disk of its own, in KiB, but for restic's list of what it has stored. */
const mostOnDisk = async () =>
  Number(
    await serverRead(
      sh`docker exec ${BACKUP_SERVICE} timeout 110 bash -c ${`until pgrep -f '[/]app/backup.mjs' > /dev/null; do sleep 0.1; done
most=0; while pgrep -f '[/]app/backup.mjs' > /dev/null; do
  now=$(du -skc --exclude=restic-cache /var/lib/backup /tmp /run 2> /dev/null | tail -n 1 | cut -f 1)
  most=$((now > most ? now : most)); sleep 0.2
done; echo $most`}`,
    ),
  )

const forged: string[] = []
/** Of a run that another server may be at work on. */
const OTHER = '20200101T000000Z-other-000000'
const leaveOther = async () => {
  const open = await store()
  await open.putText(`kgc/runs/${OTHER}/kgc.dump.zst.age`, 'a leftover')
  open.close()
}

test.before(async () => {
  await rehearsal()
  await loadData()
  await clearSink()
  await inVolumes(MAKE_FILES)
})
test.after(async () => {
  for (const run of [...forged, OTHER]) await versionsOf(run, { lift: true })
  await inVolumes((name) => `rm -f of-${name}`)
})

test('a backup by hand is complete, read back, restored with every row, and told', async () => {
  await lookAtRepository()
  const writer = sql('kgc', WRITER).catch(() => {})
  const run = await runScript('backup', ['--verify']).finally(() => sql('kgc', STOP_WRITER))
  await writer
  await lookAtRepository()
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout + run.stderr, /restored into a throwaway server with every row/)
  const [newest] = (await catalog()).runs
  assert.ok(newest?.manifest.complete && newest.manifest.verified.read)
  assert.equal(newest.manifest.databases.map(({ name }) => name).sort(), [...DATABASES].sort())
  assert.equal([...(newest.proof?.restored ?? [])].sort(), [...DATABASES].sort())
  assert.ok((await sinkMessages()).some(({ body }) => /✅ Backup .*restored as a test/.test(body.text)))
  const list = await runScript('backup', ['--list'])
  assert.match(list.stdout, new RegExp(`${newest.manifest.run} .*complete`))
})

test('the manifest has what a restore must know, counted in the snapshot', async () => {
  const manifest = (await catalog()).runs[0]?.manifest
  const kgc = manifest?.databases.find(({ name }) => name === 'kgc')
  assert.ok(manifest && kgc)
  assert.is(kgc.owner, 'kgc')
  assert.ok(kgc.acl?.includes('backup=c/kgc'))
  assert.equal(kgc.settings, [{ role: null, setting: 'work_mem=8MB' }])
  assert.is(kgc.rows['billing.invoice'], 20_000)
  assert.is(kgc.rows['billing.event_2025'], 213)
  assert.is(kgc.rows['billing.private'], 1, 'row security hides nothing from a backup')
  assert.is(kgc.rows[`"Odd Schema"."Kis ""Tábla"" $x'y"`], 2)
  assert.is(kgc.extensions.vector, '0.8.0')
  assert.ok(kgc.parts >= 3, `${kgc.parts} parts`)
  assert.ok((manifest.files?.files ?? 0) > 0)
})

test('each database is as it was at one moment, while it was written to, and the four moments are within a second', async () => {
  const databases = (await catalog()).runs[0]?.manifest.databases ?? []
  const rows = databases.find(({ name }) => name === 'kgc')?.rows ?? {}
  assert.ok((rows['billing.delivery'] ?? 0) > 0, 'nothing was written before the backup')
  assert.ok(
    (rows['billing.delivery'] ?? 0) < (await rowsOf('billing.delivery')),
    'nothing was written during the backup',
  )
  assert.is(rows['billing.delivered'], rows['billing.delivery'])
  const moments = databases.map(({ at }) => Date.parse(at))
  assert.is(moments.length, DATABASES.length)
  assert.ok(Math.max(...moments) - Math.min(...moments) < 1000)
})

test('the rows of a table that others inherit from are its own', async () => {
  const rows = (await catalog()).runs[0]?.manifest.databases.find(({ name }) => name === 'kgc')?.rows
  assert.is(rows?.['billing.contact'], 30)
  assert.is(rows?.['billing.supplier'], 12)
})

test('the files of every application are in it', async () => {
  const files = (await catalog()).runs[0]?.manifest.files
  const list = (await restic(['ls', files?.snapshot ?? ''])).split('\n')
  for (const name of VOLUMES) assert.ok(list.includes(`/data/${name}/of-${name}`), name)
  // What shows that one of them was emptied.
  assert.equal(Object.keys(files?.each ?? {}), VOLUMES)
  assert.ok((files?.each?.uploads ?? 0) >= 20 * MIB)
})

test('who holds the identity reads it with other programs; who does not, does not', async () => {
  const manifest = (await catalog()).runs[0]?.manifest
  assert.ok(manifest?.globals && manifest.secrets && manifest.redis && manifest.grafana)
  for (const part of [...manifest.databases, manifest.globals, manifest.redis]) {
    const raw = await decrypted(part.key)
    assert.is(raw.length, part.rawBytes, part.key)
    assert.is(createHash('sha256').update(raw).digest('hex'), part.rawSha256, part.key)
  }
  assert.match((await decrypted(manifest.globals.key)).toString(), /ALTER ROLE kgc_a .*SCRAM-SHA-256/)
  assert.match((await decrypted(manifest.secrets.key)).toString(), /TWENTY_ENCRYPTION_KEY=[0-9a-f]+/)
  assert.match((await decrypted(manifest.grafana.key)).toString('latin1'), /^SQLite format 3/)
  const { generateIdentity } = await import('age-encryption')
  const stranger = await generateIdentity()
  const refused = await decrypted(manifest.globals.key, stranger).catch((error: Error) => error)
  assert.instance(refused, Error)
})

test('the identity is nowhere on the server', async () => {
  const found = await serverRead(
    script(
      `grep -rlE 'AGE-SECRET-KEY-1[A-Z0-9]{20}' /opt/kgc /home /root /tmp 2> /dev/null; docker inspect $(docker ps -q) | grep -cE 'AGE-SECRET-KEY-1[A-Z0-9]{20}' || true`,
    ),
  )
  assert.is(found, '0')
})

test('its metrics reach the exporter', async () => {
  const metrics = await serverRead(sh`docker exec kgc-node-exporter-1 wget -q -T 5 -O - http://127.0.0.1:9100/metrics`)
  for (const name of [
    'last_success_timestamp_seconds{kind="daily"}',
    'last_restore_test_timestamp_seconds',
    'last_run_ok',
  ])
    assert.match(metrics, new RegExp(`^kgc_backup_${name.replace(/[{}]/g, '\\$&')} [1-9]`, 'm'))
})

test('cron asks for it; after a good one, nothing is due', async () => {
  const run = await startBackup(['--if-due'])
  assert.is(run.code, 0)
  assert.is(run.stdout + run.stderr, '')
  const crontab = await serverRead(sh`docker exec ${BACKUP_SERVICE} cat /etc/cron.d/backup`)
  assert.match(crontab, /^0 2 \* \* \* root .*backup --if-due/m)
  assert.match(await serverRead(sh`docker exec ${BACKUP_SERVICE} date +%Z`), /^CES?T$/)
})

test('who started it sees how far it is; it goes on when that connection breaks', async () => {
  const before = (await catalog()).runs.length
  const { seen, ended } = startOnTerminal()
  const line = /[█░]{20} [\d.]+ [MG]B of about [\d.]+ [MG]B, [\d.]+ [MG]B\/s.*; all \d+ %/
  await until(async () => line.test(seen.text), 'how far it is')
  await serverRead(script("pkill -KILL -u deploy -f '^sshd' || true"))
  assert.is(await ended, 1, seen.text)
  assert.match(seen.text, /connection to \S+ broke; the backup goes on there/)
  await until(async () => (await catalog()).runs.length > before, 'the backup that goes on')
  assert.is((await catalog()).runs[0]?.manifest.complete, true)
  await until(async () => (await processes()).length === 0, 'its end')
})

test('no backup is made while a restore is half done, and it is told', async () => {
  const before = (await catalog()).runs.length
  const file = `${ROOT}/${EXCHANGE}`
  await serverRead(sh`touch ${file}`)
  const run = await startBackup().finally(() => serverRead(sh`rm -f ${file}`))
  assert.is(run.code, 1, said({ ...run, seconds: 0 }))
  assert.match(run.stderr, /was cut off while it did/)
  assert.ok((await sinkMessages()).some(({ body }) => /❌ Backup FAILED at "Lock".*cut off/.test(body.text)))
  assert.is((await catalog()).runs.length, before)
})

for (const how of ['overwrite', 'remove'] as const)
  test(`a backup whose manifest somebody could ${how} is there as it was, and no leftover`, async () => {
    const good = (await catalog()).runs[0]?.manifest
    assert.ok(good)
    const run = await forgeRun(good, new Date(Date.parse(good.started) - 24 * 3600_000))
    forged.push(run)
    await hideManifest(run, how)
    const { runs, leftovers } = await catalog()
    assert.not(leftovers.some((left) => left.run === run))
    const found = runs.find(({ manifest }) => manifest.run === run)
    assert.is(found?.hidden, true)
    assert.equal(found?.manifest.databases, good.databases)
    const list = await runScript('backup', ['--list'])
    assert.match(list.stderr, new RegExp(`removed the manifest of ${run}; its first version is taken`))
    await versionsOf(run, { lift: true })
  })

test('a part that breaks once is sent again', async () => {
  const { error, found, open } = await putThrough((seen) => (isPart(seen, 2) && seen.count < 2 ? 'cut' : 'pass'))
  assert.is(error, undefined)
  assert.is(found?.size, 40 * MIB)
  assert.equal(open, [])
})

test('an S3 server that is gone from part 2 on: an error, no object, nothing left open', async () => {
  // The clean-up still comes through.
  const { error, found, open } = await putThrough((seen) => (isPart(seen) && !isPart(seen, 1) ? 'cut' : 'pass'))
  assert.match(error?.message ?? '', /failed: .*(hang up|ECONNRESET|EPIPE)/)
  assert.is(found, undefined)
  assert.equal(open, [])
})

test('one that hangs is given up after its time limit', async () => {
  const { error, found, open, seconds } = await putThrough((seen) => (isPart(seen) ? 'hang' : 'pass'), { timeout: 1 })
  assert.match(error?.message ?? '', /[Tt]imeout|timed out/)
  assert.is(found, undefined)
  assert.equal(open, [])
  assert.ok(seconds < 60, `${seconds} s`)
})

test('one that refuses for a moment, or is slow, costs only time', async () => {
  const refusing = await putThrough((seen) => (isPart(seen) && seen.count < 3 ? { status: 503 } : 'pass'))
  const slow = await putThrough((seen) => (isPart(seen) ? { delayMs: 500 } : 'pass'))
  for (const { error, found } of [refusing, slow]) {
    assert.is(error?.message, undefined)
    assert.is(found?.size, 40 * MIB)
  }
})

test('a completed upload whose answer was lost is a success', async () => {
  const { error, found } = await putThrough((seen) => (isComplete(seen) && seen.count === 0 ? 'lose-answer' : 'pass'))
  assert.is(error, undefined)
  assert.is(found?.size, 40 * MIB)
})

test('one that refuses for ever: an error, no object, nothing left open', async () => {
  const { error, found, open } = await putThrough((seen) => (isPart(seen) ? { status: 503 } : 'pass'))
  assert.match(error?.message ?? '', /failed: .*HTTP 503/)
  assert.is(found, undefined)
  assert.equal(open, [])
})

test('an answer that never comes, or stops in the middle, is given up: of an object, a manifest, a listing', async () => {
  const key = (await catalog()).runs[0]?.manifest.databases[0]?.key ?? ''
  const started = performance.now()
  async function askAll(fault: Fault) {
    const proxy = await faultyS3(() => fault)
    const faulty = await openStore({ ...s3Settings(), S3_ENDPOINT: proxy.endpoint, S3_TIMEOUT: 1 })
    const object = async () => {
      for await (const _ of faulty.get(key));
    }
    const refused = faulty.getText('kgc/no-such-object')
    const ended = await Promise.allSettled([object(), faulty.getText(key), faulty.list('kgc/'), refused])
    faulty.close()
    await proxy.close()
    for (const one of ended)
      assert.match(one.status === 'rejected' ? one.reason.message : 'no error', /for 1 s|[Tt]imeout/)
  }
  await Promise.all([askAll('hang'), askAll({ stallAfter: 20 })])
  assert.ok(performance.now() - started < 60_000)
})

test('no checksum goes with a part that Wasabi would refuse: its signed hash does', async () => {
  const parts: Seen['headers'][] = []
  const { found } = await putThrough((seen) => {
    if (seen.method === 'PUT') parts.push(seen.headers)
    return 'pass'
  })
  assert.is(found?.size, 40 * MIB)
  assert.is(parts.length, 3)
  for (const headers of parts) {
    assert.match(String(headers['x-amz-content-sha256']), /^[0-9a-f]{64}$/)
    assert.equal(
      Object.keys(headers).filter((name) => /^x-amz-(checksum|sdk-checksum|trailer)/.test(name)),
      [],
    )
  }
})

for (const [name, programs] of [
  ['that fails', script(`head -c ${40 * MIB} /dev/urandom; exit 3`)],
  ['that is killed', script(`head -c ${40 * MIB} /dev/urandom; kill -9 $$`)],
  ['whose first program fails', script(`(head -c ${40 * MIB} /dev/urandom; exit 3) | cat`)],
] as const) {
  test(`a source ${name} never becomes an object`, async () => {
    const { error, found, open } = await putThrough(() => 'pass', { programs })
    assert.match(error?.message ?? '', /The source failed/)
    assert.is(found, undefined)
    assert.equal(open, [])
  })
}

test('a full bucket is named', async () => {
  await radosgw(
    `quota set --quota-scope=bucket --uid owner --max-size=10M && radosgw-admin quota enable --quota-scope=bucket --uid owner`,
  )
  try {
    const { error, found, open } = await putThrough(() => 'pass')
    assert.match(error?.message ?? '', /the bucket kgc-backup is full/)
    assert.is(found, undefined)
    assert.equal(open, [])
  } finally {
    await radosgw(`quota disable --quota-scope=bucket --uid owner`)
  }
})

for (const [what, settings, message] of [
  ['a wrong secret', { S3_SECRET_ACCESS_KEY: 'wrongwrongwrong' }, /secret does not fit/],
  ['an unknown key', { S3_ACCESS_KEY_ID: 'UNKNOWN' }, /does not know the access key/],
  ['a missing bucket', { S3_BUCKET: 'no-such-bucket' }, /there is no bucket no-such-bucket/],
  ['a port where nobody listens', { S3_ENDPOINT: `${S3.endpoint}:4` }, /ECONNREFUSED/],
  ['a clock an hour off', { S3_ENDPOINT: 'proxy' }, /clock is 3(600|599) s off/],
  ['no recipient', { BACKUP_RECIPIENTS: '' }, /BACKUP_RECIPIENTS is not set/],
] as const) {
  test(`${what} is named before anything is touched`, async () => {
    const before = (await catalog()).runs.length
    const proxy = await faultyS3(() => ({ headers: { date: new Date(Date.now() + 3_600_000).toUTCString() } }))
    const env =
      'S3_ENDPOINT' in settings && settings.S3_ENDPOINT === 'proxy' ? { S3_ENDPOINT: proxy.endpoint } : settings
    const run = await startBackup([], env).finally(proxy.close)
    assert.ok(run.code === 1 || run.code === 2, said({ ...run, seconds: 0 }))
    assert.match(run.stderr, message)
    assert.not.match(run.stderr, /Snapshots/)
    const now = await catalog()
    assert.is(now.runs.length + now.leftovers.length, before)
  })
}

let onDisk = Number.NaN
test('a database that dies while it is dumped, parts that come back with a flipped bit, a second run meanwhile', async () => {
  const flip = (body: Buffer) => {
    const at = Math.floor(body.length * 0.7)
    body[at] = (body[at] ?? 0) ^ 1
    return body
  }
  const proxy = await faultyS3((seen) => {
    if (seen.method === 'GET' && /\/(horilla|globals|redis-queue|grafana|secrets)\.[^/]*\.age$/.test(seen.path))
      return { body: flip }
    return isPart(seen) ? { delayMs: 4000 } : 'pass'
  })
  const backup = startBackup([], { S3_ENDPOINT: proxy.endpoint })
  const watched = mostOnDisk()
  try {
    const dumping = "application_name = 'pg_dump' AND query LIKE 'COPY billing.attachment%'"
    const kill = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE ${dumping}`
    for (let tries = 0; tries < 200 && (await sql('kgc', kill)) === '0'; tries++) await sleep(50)
    const second = await startBackup()
    assert.is(second.code, 3, said({ ...second, seconds: 0 }))
    assert.match(second.stderr, /Another backup, a restore or a migration is running/)
    const run = await backup
    assert.is(run.code, 1, said({ ...run, seconds: 0 }))
    const manifest = (await catalog()).runs[0]?.manifest
    assert.is(manifest?.complete, false)
    assert.equal(
      manifest?.failed.map(({ part }) => part),
      ['kgc', ...['horilla', 'roles', 'job queue', 'Grafana', 'secrets'].map((part) => `Read back: ${part}`)],
    )
    assert.equal(manifest?.databases.map(({ name }) => name).sort(), ['chatwoot', 'twenty'])
    assert.equal(await openUploads('kgc/runs/'), [])
    assert.equal(await processes(), [])
    onDisk = await watched
    await lookAtRepository()
    assert.ok(
      (await sinkMessages()).some(({ body }) => /❌ Backup FAILED.*kgc: The dump of kgc failed/s.test(body.text)),
    )
  } finally {
    await proxy.close()
  }
})

test('no dump was on a disk meanwhile', () => assert.ok(onDisk > 0 && onDisk < 10_000, `${onDisk} KiB`))

test('files that did not change were not sent again', () => {
  const [before = Number.NaN, first = Number.NaN, second = Number.NaN] = repository
  assert.ok(first - before >= 20 * MIB, `${first - before} bytes`)
  assert.ok(second - first < MIB, `${second - first} bytes`)
})

test('what was stored and cannot be restored is found by the weekly test', async () => {
  // Legal, and a trap: the dump fills expense before limits.
  await sql(
    'kgc',
    `SET ROLE kgc; CREATE TABLE billing.limits (highest int); INSERT INTO billing.limits VALUES (100);
CREATE FUNCTION billing.allowed(int) RETURNS boolean LANGUAGE sql AS 'SELECT EXISTS (SELECT FROM billing.limits WHERE highest >= $1)';
CREATE TABLE billing.expense (amount int CHECK (billing.allowed(amount))); INSERT INTO billing.expense VALUES (50)`,
  )
  const lastRestored = daysAgo(8)
  await changeState({ lastRestored })
  await clearSink()
  try {
    const run = await startBackup()
    assert.is(run.code, 1, said({ ...run, seconds: 0 }))
    assert.match(run.stderr, /violates check constraint "expense_amount_check"/)
  } finally {
    await sql('kgc', 'DROP TABLE billing.expense; DROP FUNCTION billing.allowed; DROP TABLE billing.limits')
  }
  const newest = (await catalog()).runs[0]
  assert.is(newest?.manifest.complete, true)
  assert.is(newest?.proof, undefined)
  assert.match(newest?.failure?.error ?? '', /expense_amount_check/)
  const state = await readState()
  assert.is(state.lastRestored, lastRestored)
  assert.is(state.lastMade, newest?.manifest.started)
  assert.ok(Date.parse(state.lastGood ?? '') < Date.parse(state.lastMade ?? ''), 'it counts as the last good one')
  assert.ok((await sinkMessages()).some(({ body }) => /❌ Backup FAILED at "Restore test".*expense/s.test(body.text)))
  assert.equal(await processes(), [])
})

test('one that failed its test is marked in the list, and no restore takes it unasked', async () => {
  const failed = (await catalog()).runs[0]?.manifest.run
  assert.match((await runScript('backup', ['--list'])).stdout, new RegExp(`${failed} .*FAILED`))
  const run = await runScript('restore', ['--db', 'kgc', '--dry-run'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, new RegExp(`${failed} did not come up in its restore test`))
  assert.not.match(run.stdout, new RegExp(`from the backup ${failed}`))
})

if (soak)
  test('a database server that is killed while it is dumped: an error, no backup, nothing left running', async () => {
    const before = (await catalog()).runs.length
    const proxy = await faultyS3(slowParts)
    const backup = startBackup([], { S3_ENDPOINT: proxy.endpoint })
    try {
      await anUploadIsOpen()
      await serverRead(sh`docker kill ${POSTGRES}`)
      const run = await backup
      assert.is(run.code, 1, said({ ...run, seconds: 0 }))
      assert.match(run.stderr, /No database could be backed up/)
    } finally {
      await startAgain(POSTGRES)
      await proxy.close()
    }
    assert.is((await catalog()).runs.length, before)
    assert.equal(await openUploads('kgc/runs/'), [])
    assert.equal(await processes(), [])
  })

const withSoak = soak ? test : () => {}
withSoak('a key that ends in the middle: the error says so, and there is no backup', async () => {
  const [id, secret] = ['ENDSINTHEMIDDLE', 'endsinthemiddle']
  await radosgw(`key create --uid owner --key-type s3 --access-key ${id} --secret-key ${secret}`)
  const before = await catalog()
  const backup = startBackup([], { S3_ACCESS_KEY_ID: id, S3_SECRET_ACCESS_KEY: secret })
  for (let tries = 0; tries < 200 && (await catalog()).leftovers.length === 0; tries++) await sleep(50)
  await radosgw(`key rm --uid owner --key-type s3 --access-key ${id}`)
  const run = await backup
  assert.is(run.code, 1, said({ ...run, seconds: 0 }))
  assert.match(run.stderr, /does not know the access key/)
  const after = await catalog()
  assert.is(after.runs.length, before.runs.length)
  assert.ok(after.leftovers.length > 0, 'it was not in the middle')
  assert.equal(await processes(), [])
})

withSoak('a table that somebody holds costs that database alone, after a minute', async () => {
  const holder = sql('kgc', 'BEGIN; LOCK TABLE billing.invoice; SELECT pg_sleep(110)').catch(() => {})
  const run = await startBackup()
  await sql(
    'kgc',
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(110)%' AND pid <> pg_backend_pid()",
  )
  await holder
  assert.is(run.code, 1, said({ ...run, seconds: 0 }))
  const manifest = (await catalog()).runs[0]?.manifest
  assert.equal(
    manifest?.failed.map(({ part }) => part),
    ['kgc'],
  )
  assert.match(manifest?.failed[0]?.error ?? '', /lock timeout/)
  assert.is(manifest?.databases.length, DATABASES.length - 1)
})

withSoak('a server that is restarted while it backs up: no backup of half, and the next one is whole', async () => {
  const before = (await catalog()).runs.map(({ manifest }) => manifest.run)
  const proxy = await faultyS3(slowParts)
  const backup = startBackup([], { S3_ENDPOINT: proxy.endpoint }).catch(() => undefined)
  try {
    await anUploadIsOpen()
    await docker(sh`restart -t 0 ${SERVER.container}`)
    await backup
  } finally {
    await proxy.close()
  }
  const isUp = () =>
    serverRead(sh`docker inspect ${BACKUP_SERVICE}`).then(
      () => true,
      () => false,
    )
  await until(isUp, 'the server', 180)
  for (const container of [POSTGRES, BACKUP_SERVICE] as const) await startAgain(container)
  const now = await catalog()
  assert.equal(
    now.runs.map(({ manifest }) => manifest.run),
    before,
  )
  const run = await startBackup()
  assert.is(run.code, 0, said({ ...run, seconds: 0 }))
  assert.equal(await openUploads('kgc/runs/'), [])
  assert.equal((await catalog()).leftovers, [])
})

test('killed in the middle, it leaves nothing that looks like a backup', async () => {
  const proxy = await faultyS3(slowParts)
  try {
    const { runs } = await catalog()
    const good = runs.map(({ manifest }) => manifest.run)
    for (let round = 0; round < (soak ? 20 : 1); round++) {
      const backup = startBackup([], round === 0 ? { S3_ENDPOINT: proxy.endpoint } : {}).catch(() => undefined)
      await (round === 0 ? anUploadIsOpen() : sleep(1000 + Math.random() * 6000))
      await serverRead(sh`docker kill ${BACKUP_SERVICE}`)
      await backup
      await startAgain(BACKUP_SERVICE)
      // One left seconds ago could be that of another server under the same name, and would be in the way for ten minutes.
      await restic(['unlock', '--remove-all'])
      const now = await catalog()
      if (round === 0) assert.equal(now.leftovers, [], 'what the run before had left')
      const extra = now.runs.filter(({ manifest }) => !good.includes(manifest.run))
      for (const { manifest } of extra) assert.ok(manifest.verified.read, manifest.run)
      good.push(...extra.map(({ manifest }) => manifest.run))
    }
  } finally {
    await proxy.close()
  }
})

test('what cron starts after an outage: a backup that sweeps up what was killed, and is restored as a test once a week', async () => {
  const before = await catalog()
  assert.ok((await openUploads('kgc/runs/')).length > 0, 'nothing to sweep up')
  await changeState({ lastMade: daysAgo(2), lastGood: daysAgo(2), lastRestored: daysAgo(8) })
  await leaveOther()
  const crontab = await serverRead(sh`docker exec ${BACKUP_SERVICE} cat /etc/cron.d/backup`)
  const [, line = ''] = /^30 \* \* \* \* root (.*)$/m.exec(crontab) ?? []
  assert.is(/^0 2 \* \* \* root (.*)$/m.exec(crontab)?.[1], line)
  await serverRead(sh`docker exec ${BACKUP_SERVICE} rm -f /var/lib/backup/lock /var/lib/backup/holder`)
  // As Debian's cron starts it, which has the umask of the container's entrypoint.
  const run = await onServer((host) =>
    host.probe(
      sh`docker exec ${BACKUP_SERVICE} env -i HOME=/root LOGNAME=root SHELL=/bin/sh PATH=/usr/bin:/bin /bin/sh -c ${`umask 077; ${line}`}`,
      { timeout: 300 },
    ),
  )
  assert.is(run.code, 0, said({ ...run, seconds: 0 }))
  const now = await catalog()
  assert.is(now.runs.length, before.runs.length + 1)
  assert.ok(now.runs[0]?.manifest.complete && now.runs[0].proof)
  assert.ok(Date.parse((await readState()).lastRestored ?? '') > Date.now() - 300_000)
  // Another server may still be at work on it.
  assert.equal(
    now.leftovers.map(({ run }) => run),
    [OTHER],
  )
  const told = await serverRead(sh`sh -c ${`docker logs --tail 100 ${BACKUP_SERVICE} 2>&1`}`)
  assert.match(told, new RegExp(`${OTHER} has no manifest yet; it is left alone`))
  assert.equal((await readState()).begun, [])
  assert.equal(await openUploads('kgc/runs/'), [])
  assert.equal(await processes(), [])
  // A deploy takes the same lock for a migration, and says who holds it.
  await serverRead(sh`cat ${`${ROOT}/${BACKUP_FOLDER}/holder`}`, 'deploy')
  await serverRead(sh`flock -n ${`${ROOT}/${BACKUP_LOCK}`} true`, 'deploy')
})

/** Two clocks must say that a backup is old: its manifest's, and the store's, which only a proxy can turn back. */
const oldStore = () =>
  faultyS3(({ method, query }) => {
    const aged = (body: Buffer) =>
      Buffer.from(body.toString().replace(/<LastModified>[^<]*/g, '<LastModified>2020-01-01T00:00:00.000Z'))
    return method === 'GET' && query.get('list-type') === '2' ? { body: aged } : 'pass'
  })
/** The one that is due, and its files. */
let old = ''
let oldFiles = ''

test('with a key that may not delete, the backup is good and says what it could not do', async () => {
  const good = (await catalog()).runs[0]?.manifest
  assert.ok(good?.files)
  await restic(['backup', '--tag', 'forged', '/data/uploads/of-uploads'])
  const [made] = JSON.parse(await restic(['snapshots', '--json', '--tag', 'forged', '--latest', '1'])) as [
    { id: string },
  ]
  oldFiles = made.id
  old = await forgeRun(good, new Date('2020-01-01T00:00:00Z'), { files: { ...good.files, snapshot: oldFiles } })
  forged.push(old)
  // The newest seven stay whatever their age.
  for (let hours = 1; hours <= 7; hours++)
    forged.push(await forgeRun(good, new Date(Date.parse(good.started) - hours * 3600_000)))
  const { client, s3 } = await s3Client(s3Settings())
  // restic takes its own locks away: below restic/ the key must be allowed to delete.
  const Resource = `arn:aws:s3:::${S3.bucket}/kgc/runs/*`
  const denied = { Effect: 'Deny', Principal: '*', Action: ['s3:DeleteObject', 's3:DeleteObjectVersion'], Resource }
  const Policy = JSON.stringify({ Version: '2012-10-17', Statement: [denied] })
  await client.send(new s3.PutBucketPolicyCommand({ Bucket: S3.bucket, Policy }))
  await leaveOther()
  await changeState({ begun: [OTHER] })
  const proxy = await oldStore()
  try {
    const run = await startBackup([], { S3_ENDPOINT: proxy.endpoint })
    assert.is(run.code, 0, said({ ...run, seconds: 0 }))
    assert.match(run.stderr, /which this key may not do/)
    assert.match(run.stderr, new RegExp(`goes: ${old}[^]*Old backups could not be removed`))
    assert.match(await metricsFile(), /^kgc_backup_prune_denied 1$/m)
    const now = await catalog()
    assert.ok(now.leftovers.length > 0)
    assert.equal((await readState()).begun, [OTHER])
    assert.ok(now.runs.some(({ manifest }) => manifest.run === old))
  } finally {
    await client.send(new s3.DeleteBucketPolicyCommand({ Bucket: S3.bucket }))
    client.destroy()
    await proxy.close()
  }
})

test('a dry run lists what would go, and changes nothing', async () => {
  const everything = async () => [
    await catalog(),
    await readState(),
    await restic(['snapshots', '--json', '--no-lock']),
  ]
  const before = await everything()
  const proxy = await oldStore()
  const run = await startBackup(['--dry-run'], { S3_ENDPOINT: proxy.endpoint }).finally(proxy.close)
  assert.is(run.code, 0, said({ ...run, seconds: 0 }))
  assert.equal(run.stderr.match(/would go: \S+/g), [`would go: ${old}`])
  assert.match(run.stderr, /Would back up to kgc-backup at .*, without a restore test/)
  assert.equal(await everything(), before)
})

test('an old backup goes when newer ones are good, all of it; and a lock on the object holds', async () => {
  const before = (await catalog()).runs
  // As a killed run leaves them.
  await restic(['backup', '--tag', 'run=killed', '--time', '2020-01-01 00:00:00', '/data/uploads/of-uploads'])
  const proxy = await oldStore()
  const run = await startBackup([], { S3_ENDPOINT: proxy.endpoint, BACKUP_LOCK_DAYS: '1' }).finally(proxy.close)
  assert.is(run.code, 0, said({ ...run, seconds: 0 }))
  const now = (await catalog()).runs
  const names = (runs: typeof now) => runs.map(({ manifest }) => manifest.run)
  assert.equal(
    names(before).filter((name) => !names(now).includes(name)),
    [old],
  )
  assert.equal(await versionsOf(old), [])
  assert.not.match(await restic(['snapshots', '--json', '--no-lock']), new RegExp(`${oldFiles}|run=killed`))
  assert.match(await metricsFile(), /^kgc_backup_prune_denied 0$/m)
  const newest = now[0]?.manifest
  assert.ok(newest)
  const open = await store()
  const removed = await open.remove(`kgc/runs/${newest.run}/`, `kgc/runs/${newest.run}/manifest.json`)
  open.close()
  assert.is(removed, false, 'a locked backup cannot be removed, also not by the owner of the bucket')
  assert.is((await catalog()).runs[0]?.manifest.run, newest.run)
  // Who may lift the lock can; else it would be in the way of the next test for a day.
  await versionsOf(newest.run, { lift: true })
})

test('no secret is in what was printed', async () => {
  assert.equal(secretsInOutput(), [])
  const logs = await onServer((host) => host.probe(sh`docker logs ${BACKUP_SERVICE}`))
  for (const secret of [s3Keys().secret, s3Keys('writer').secret])
    assert.not(`${logs.stdout}${logs.stderr}`.includes(secret))
})

test.run()
