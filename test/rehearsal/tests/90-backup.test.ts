import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DATABASES } from '../../../lib/backup/databases.ts'
import { openStore } from '../../../lib/backup/object-store.ts'
import { output } from '../../../lib/backup/pipeline.ts'
import { s3Client } from '../../../lib/backup/s3-client.ts'
import { script, sh } from '../../../lib/shell.ts'
import {
  CONTAINER,
  catalog,
  decrypted,
  loadData,
  openUploads,
  processes,
  radosgw,
  sql,
  startBackup,
  store,
} from '../backup.ts'
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
import { S3 } from '../names.ts'
import { s3Keys, s3Settings } from '../s3.ts'
import { type Fault, faultyS3, type Seen } from '../s3-proxy.ts'

const test = suite('backup')
const soak = process.env.SOAK === '1'
const MIB = 1024 ** 2

/** 40 MiB that do not compress: three parts. */
const THREE_PARTS = sh`head -c ${40 * MIB} /dev/urandom`
const isPart = ({ method, query }: Seen, number?: number) =>
  method === 'PUT' && query.has('partNumber') && (number === undefined || query.get('partNumber') === String(number))
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

test.before(async () => {
  await rehearsal()
  await loadData()
  await clearSink()
})

test('a backup by hand is complete, read back, restored with every row, and told', async () => {
  const run = await runScript('backup', ['--verify'])
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
  const crontab = await serverRead(sh`docker exec ${CONTAINER} cat /etc/cron.d/backup`)
  assert.match(crontab, /^0 2 \* \* \* root .*backup --if-due/m)
  assert.match(await serverRead(sh`docker exec ${CONTAINER} date +%Z`), /^CES?T$/)
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
  const { error, found, open, seconds } = await putThrough((seen) => (isPart(seen) ? 'hang' : 'pass'), { timeout: 2 })
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

test('a database that dies while it is dumped, one that comes back with a flipped bit, a second run meanwhile', async () => {
  const flip = (body: Buffer) => {
    const at = Math.floor(body.length * 0.7)
    body[at] = (body[at] ?? 0) ^ 1
    return body
  }
  const proxy = await faultyS3((seen) => {
    if (seen.method === 'GET' && seen.path.endsWith('horilla.dump.zst.age')) return { body: flip }
    return isPart(seen) ? { delayMs: 4000 } : 'pass'
  })
  const backup = startBackup([], { S3_ENDPOINT: proxy.endpoint })
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
      ['kgc', 'Read back: horilla'],
    )
    assert.equal(manifest?.databases.map(({ name }) => name).sort(), ['chatwoot', 'twenty'])
    assert.equal(await openUploads('kgc/runs/'), [])
    assert.equal(await processes(), [])
    assert.ok(
      (await sinkMessages()).some(({ body }) => /❌ Backup FAILED.*kgc: The dump of kgc failed/s.test(body.text)),
    )
  } finally {
    await proxy.close()
  }
})

test('a key that ends in the middle: the error says so, and there is no backup', async () => {
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

test('killed at random moments, it leaves nothing that looks like a backup, and the next one sweeps up', async () => {
  const good = (await catalog()).runs.map(({ manifest }) => manifest.run)
  const kills = soak ? 20 : 2
  for (let round = 0; round < kills; round++) {
    const backup = startBackup().catch(() => undefined)
    await sleep(1000 + Math.random() * 6000)
    await serverRead(sh`docker kill ${CONTAINER}`)
    await backup
    await serverRead(
      script(
        `docker start ${CONTAINER} > /dev/null; until [ "$(docker inspect -f '{{.State.Health.Status}}' ${CONTAINER})" = healthy ]; do sleep 0.5; done`,
      ),
    )
    const { runs } = await catalog()
    const extra = runs.filter(({ manifest }) => !good.includes(manifest.run))
    for (const { manifest } of extra) assert.ok(manifest.verified.read, manifest.run)
    good.push(...extra.map(({ manifest }) => manifest.run))
  }
})

test('with a key that may not delete, the backup is good and says what it could not do', async () => {
  const { client, s3 } = await s3Client(s3Settings())
  // restic takes its own locks away: below restic/ the key must be allowed to delete.
  const Resource = `arn:aws:s3:::${S3.bucket}/kgc/runs/*`
  const denied = { Effect: 'Deny', Principal: '*', Action: ['s3:DeleteObject', 's3:DeleteObjectVersion'], Resource }
  const Policy = JSON.stringify({ Version: '2012-10-17', Statement: [denied] })
  await client.send(new s3.PutBucketPolicyCommand({ Bucket: S3.bucket, Policy }))
  const left = await store()
  await left.putText('kgc/runs/20200101T000000Z-other-000000/kgc.dump.zst.age', 'a leftover')
  left.close()
  try {
    const run = await startBackup()
    assert.is(run.code, 0, said({ ...run, seconds: 0 }))
    assert.match(run.stderr, /which this key may not do/)
    assert.ok((await catalog()).leftovers.length > 0)
  } finally {
    await client.send(new s3.DeleteBucketPolicyCommand({ Bucket: S3.bucket }))
    client.destroy()
  }
})

test('old backups go when newer ones are good, and a lock on the object holds', async () => {
  const before = (await catalog()).runs
  const oldest = before.at(-1)?.manifest
  assert.ok(oldest)
  // Two clocks must say that it is old: the manifest's, and the store's, which only a proxy can turn back.
  const aged = (body: Buffer) =>
    Buffer.from(body.toString().replace(/<LastModified>[^<]*/g, '<LastModified>2020-01-01T00:00:00.000Z'))
  const manifests = (body: Buffer) =>
    Buffer.from(body.toString().replace(/"started": "[^"]*"/, '"started": "2020-01-01T00:00:00.000Z"'))
  const proxy = await faultyS3(({ method, path, query }) => {
    if (method === 'GET' && query.get('list-type') === '2') return { body: aged }
    return method === 'GET' && path.endsWith(`${oldest.run}/manifest.json`) ? { body: manifests } : 'pass'
  })
  const run = await startBackup([], { S3_ENDPOINT: proxy.endpoint, BACKUP_LOCK_DAYS: '1' }).finally(proxy.close)
  assert.is(run.code, 0, said({ ...run, seconds: 0 }))
  const now = await catalog()
  const kept = now.runs.map(({ manifest }) => manifest.run)
  const fewComplete = before.filter(({ manifest }) => manifest.complete).length < 7
  if (oldest.complete && fewComplete) assert.ok(kept.includes(oldest.run), 'the newest seven stay whatever their age')
  else assert.not(kept.includes(oldest.run))
  const newest = now.runs[0]?.manifest
  assert.ok(newest)
  const open = await store()
  const removed = await open.remove(`kgc/runs/${newest.run}/`, `kgc/runs/${newest.run}/manifest.json`)
  open.close()
  assert.is(removed, false, 'a locked backup cannot be removed, also not by the owner of the bucket')
  assert.is((await catalog()).runs[0]?.manifest.run, newest.run)
  // Who may lift the lock can; else it would be in the way of the next test for a day.
  const { client, s3 } = await s3Client(s3Settings())
  const Prefix = `kgc/runs/${newest.run}/`
  const { Versions = [], DeleteMarkers = [] } = await client.send(
    new s3.ListObjectVersionsCommand({ Bucket: S3.bucket, Prefix }),
  )
  for (const { Key, VersionId } of [...Versions, ...DeleteMarkers])
    await client.send(
      new s3.DeleteObjectCommand({ Bucket: S3.bucket, Key, VersionId, BypassGovernanceRetention: true }),
    )
  client.destroy()
})

test('no secret is in what was printed', async () => {
  assert.equal(secretsInOutput(), [])
  const logs = await onServer((host) => host.probe(sh`docker logs ${CONTAINER}`))
  for (const secret of [s3Keys().secret, s3Keys('writer').secret])
    assert.not(`${logs.stdout}${logs.stderr}`.includes(secret))
})

test.run()
