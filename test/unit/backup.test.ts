import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { catalogTable, catalogToRestore, readCatalog } from '../../lib/backup/catalog.ts'
import { blame } from '../../lib/backup/drill.ts'
import { orphansAmong, subsetOf } from '../../lib/backup/files.ts'
import { Damaged, type Manifest, manifestText, newRunId, parseManifest } from '../../lib/backup/manifest.ts'
import { partSizeFor } from '../../lib/backup/object-store.ts'
import { Denied, explainS3 } from '../../lib/backup/object-store-errors.ts'
import { dumpCommand, dumpOf, expectedSizes } from '../../lib/backup/parts.ts'
import { output, ProgramFailed, text } from '../../lib/backup/pipeline.ts'
import { describeProgress, trackProgress } from '../../lib/backup/progress.ts'
import { parseProgress, progressLine } from '../../lib/backup/remote.ts'
import { lockOfOther } from '../../lib/backup/restic.ts'
import { type KnownRun, minimumCharge, runsToRemove } from '../../lib/backup/retention.ts'
import { isDue, isRestoreTestDue, lastDueTime, metrics, shrunkParts, sizesOf } from '../../lib/backup/state.ts'
import { isDead } from '../../lib/backup/sweep.ts'
import { abortUploads, hiddenAmong, removeAll, type Version } from '../../lib/backup/versions.ts'
import { validate } from '../../lib/config.ts'
import { Stop } from '../../lib/errors.ts'
import { script, sh } from '../../lib/shell.ts'

const test = suite('backup')
const DAY = 24 * 3600_000
const NOW = new Date('2026-11-23T01:30:00Z')
const signal = new AbortController().signal

/** A run of so many days ago. */
function night(daysAgo: number, changes: Partial<KnownRun['manifest']> & { proven?: boolean } = {}): KnownRun {
  const { proven, ...about } = changes
  const started = new Date(NOW.getTime() - daysAgo * DAY)
  return {
    manifest: {
      run: `night-${daysAgo}`,
      host: 'kgc',
      started: started.toISOString(),
      complete: true,
      verified: { read: true, at: started.toISOString(), seconds: 1 },
      ...about,
    },
    stored: started,
    ...(proven ? { proof: { restored: ['kgc'] } } : {}),
  }
}
const nights = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => night(from + index))
const keep = (days: number, weeks = 0, months = 0) => ({ days, weeks, months })
const gone = (runs: KnownRun[], policy = keep(30)) =>
  runsToRemove(runs, policy, NOW).remove.map(({ manifest }) => manifest.run)

test('what is older than 30 days goes, oldest first, and no more than three in one night', () => {
  assert.equal(gone(nights(0, 31)), ['night-31'])
  const { remove, later } = runsToRemove(nights(0, 40), keep(30), NOW)
  assert.equal(
    remove.map(({ manifest }) => manifest.run),
    ['night-40', 'night-39', 'night-38'],
  )
  assert.is(later, 7)
})

test('the newest seven stay whatever their age, and so does the last one that was restored', () => {
  assert.equal(gone([night(0), ...nights(100, 105)]), [])
  assert.equal(gone([...nights(0, 10), night(60, { proven: true }), night(61, { proven: true })]), ['night-61'])
})

test('nothing goes while the newest is not complete, or not read back', () => {
  const refused = { read: false, at: '', seconds: 0 }
  for (const newest of [night(0, { complete: false }), night(0, { verified: refused })]) {
    const { remove, refused } = runsToRemove([newest, ...nights(1, 50)], keep(30), NOW)
    assert.equal(remove, [])
    assert.match(refused ?? '', /not complete and verified/)
  }
  assert.equal(gone([]), [])
})

test('a clock that was wrong removes nothing: both the manifest and the store must call it old', () => {
  const young = { ...night(50), stored: NOW }
  const fromTheFuture = night(-400)
  assert.equal(gone([...nights(0, 8), young]), [])
  assert.equal(gone([fromTheFuture, ...nights(1, 20)]), [])
})

test('order is by start, not by name', () => {
  const renamed = nights(0, 31).map((run, index) => ({
    ...run,
    manifest: { ...run.manifest, run: `pg${16 - (index % 2)}-${index}` },
  }))
  assert.is(gone(renamed).length, 1)
  assert.match(gone(renamed)[0] ?? '', /-31$/)
})

test('weeks and months are kept by their newest night; incomplete ones are nobody’s newest', () => {
  const kept = (policy: ReturnType<typeof keep>) => {
    let runs = nights(0, 400)
    for (;;) {
      const { remove } = runsToRemove(runs, policy, NOW)
      if (remove.length === 0) return runs.length
      runs = runs.filter((run) => !remove.includes(run))
    }
  }
  assert.is(kept(keep(30)), 31)
  assert.ok(kept(keep(30, 8)) > 31 && kept(keep(30, 8)) <= 31 + 5)
  assert.ok(kept(keep(30, 0, 12)) >= 31 + 10 && kept(keep(30, 0, 12)) <= 31 + 12)
  assert.equal(gone([...nights(0, 8), night(60, { complete: false })], keep(30, 99, 99)), ['night-60'])
})

test('a backup is due when none began since 02:00, also after an outage', () => {
  const at = (hour: number, day = 23) => new Date(2026, 10, day, hour, 30)
  const good = (when: Date) => ({ sizes: {}, lastGood: when.toISOString() })
  assert.is(lastDueTime(at(1)).getDate(), 22)
  assert.is(isDue({ sizes: {} }, at(12)), true)
  assert.is(isDue(good(at(2)), at(23)), false)
  assert.is(isDue(good(at(2, 22)), at(1)), false)
  assert.is(isDue(good(at(2, 22)), at(2)), true)
  assert.is(isDue(good(at(2, 19)), at(12)), true)
  assert.is(isRestoreTestDue({ sizes: {}, lastRestored: at(2, 16).toISOString() }, 7, at(2)), true)
  assert.is(isRestoreTestDue({ sizes: {}, lastRestored: at(2, 17).toISOString() }, 7, at(2)), false)
})

test('metrics say nothing that is not known', () => {
  assert.not.match(metrics({ sizes: {} }), /last_success/)
  const known = metrics({ sizes: { kgc: { raw: 10, stored: 2 } }, lastGood: '2026-11-23T01:00:00Z' })
  assert.match(known, /^kgc_backup_last_success_timestamp_seconds\{kind="daily"\} 1795395600$/m)
  assert.match(known, /^kgc_backup_stored_bytes\{part="kgc"\} 2$/m)
})

test('parts are large enough for the largest stream that S3 takes', () => {
  assert.is(partSizeFor(0), 16 * 1024 ** 2)
  for (const size of [1e9, 1e11, 4e12]) assert.ok(size / partSizeFor(size) <= 9000 / 1.19)
})

test('the parts of a dump are as large as its database needs', () => {
  const largest = { name: 'kgc', about: { size: 4e12, snapshot: '1' } } as Parameters<typeof dumpOf>[0]
  assert.is(dumpOf(largest).source.expected, 4e12)
  assert.is(dumpOf(largest).object, 'kgc.dump.zst.age')
})

test('what is expected comes from the backup before, and at first from the size of the database', () => {
  const stored = (key: string, storedBytes: number) => ({ key: `kgc/runs/1/${key}`, storedBytes })
  const last = { databases: [{ name: 'kgc', ...stored('kgc.dump.zst.age', 77) }], redis: stored('redis.rdb', 5) }
  const sizes = { kgc: 1000, twenty: 500 }
  assert.equal(expectedSizes(undefined, sizes), { 'kgc.dump.zst.age': 200, 'twenty.dump.zst.age': 100 })
  assert.equal(expectedSizes(last as unknown as Manifest, sizes), {
    ...{ 'kgc.dump.zst.age': 77, 'twenty.dump.zst.age': 100, 'redis.rdb': 5 },
  })
})

test('two runs never share a name, and names sort by time', () => {
  const first = newRunId(NOW, 'kgc')
  assert.match(first, /^20261123T013000Z-kgc-[0-9a-f]{6}$/)
  assert.is.not(first, newRunId(NOW, 'kgc'))
  assert.ok(first < newRunId(new Date(NOW.getTime() + 1000), 'kgc'))
})

test('what is no manifest is refused', () => {
  for (const broken of ['', '{}', '{"schema": 2}', '[]']) assert.throws(() => parseManifest(broken))
})

const STORED = {
  ...{ key: 'kgc/runs/1/kgc', rawBytes: 1, rawSha256: 'a'.repeat(64), storedBytes: 1, storedSha256: 'b'.repeat(64) },
  ...{ parts: 1, partSize: 1, seconds: 1.5 },
}
const FILES = { repository: 'kgc/restic', snapshot: 'ab12cd34', paths: ['/data/uploads'], files: 1, bytes: 1 }
const MANIFEST: Manifest = {
  ...{ schema: 1, run: '1', host: 'kgc', started: NOW.toISOString(), ended: NOW.toISOString(), complete: true },
  ...{ failed: [], commit: '', tools: {}, server: { versionNum: 150018, systemIdentifier: '7' } },
  ...{ clockOffsetSeconds: 0, recipients: ['age1x'] },
  databases: [
    {
      ...{
        ...STORED,
        name: 'kgc',
        snapshot: '1',
        lsn: '0/1',
        at: NOW.toISOString(),
        size: 1,
        rows: { 'public."á"': 1 },
      },
      ...{
        owner: 'kgc',
        acl: ['kgc=CTc/kgc'],
        settings: [],
        extensions: {},
        encoding: 'UTF8',
        collate: 'C',
        ctype: 'C',
      },
      ...{ localeProvider: 'libc', icuLocale: null, collationVersion: null, connectionLimit: -1 },
    },
  ],
  files: FILES,
  verified: { read: true, at: NOW.toISOString(), seconds: 1 },
}

test('a manifest comes back as it was written, one without a hash as well, and no flipped bit passes', () => {
  const text = Buffer.from(manifestText(MANIFEST))
  assert.equal(parseManifest(text.toString()), MANIFEST)
  assert.equal(parseManifest(JSON.stringify(MANIFEST)), MANIFEST)
  for (let at = 0; at < text.length; at++) {
    const flipped = Buffer.from(text)
    flipped[at] = (text[at] ?? 0) ^ (1 << (at % 8))
    let read: Manifest | undefined
    try {
      read = parseManifest(flipped.toString())
    } catch {
      continue
    }
    // In the name of the hash, or between two words: all that a restore reads is as it was.
    assert.equal(read, MANIFEST, `bit ${at % 8} of byte ${at}`)
  }
})

test('what a manifest names can neither leave a folder nor become a command', () => {
  const [kgc] = MANIFEST.databases
  for (const changes of [
    { run: '../1' },
    { databases: [{ ...kgc, name: '../../.ssh/authorized_keys' }] },
    { files: { ...FILES, repository: 'kgc/restic";curl x' } },
    { files: { ...FILES, repository: '../other' } },
    { files: { ...FILES, snapshot: 'latest; cat /data/server/.env' } },
  ])
    assert.throws(() => parseManifest(JSON.stringify({ ...MANIFEST, ...changes })), /damaged/)
})

/** A bucket that has these texts, or fails with them. */
function storeOf(objects: Record<string, string | Error>, hidden: { key: string; versionId: string }[] = []) {
  const list = async () => Object.keys(objects).map((key) => ({ key: `kgc/runs/${key}`, size: 1, modified: NOW }))
  const getText = async (key: string, versionId?: string) => {
    const found = objects[`${key.slice('kgc/runs/'.length)}${versionId ? `@${versionId}` : ''}`]
    if (found instanceof Error) throw found
    return found
  }
  const marked = async () => hidden.map(({ key, versionId }) => ({ key: `kgc/runs/${key}`, versionId, modified: NOW }))
  const store = { settings: { S3_PREFIX: 'kgc' }, list, getText, hidden: marked }
  return store as unknown as Parameters<typeof readCatalog>[0]
}
const manifestOf = (run: string) => manifestText({ ...MANIFEST, run })

test('a broken connection is not taken for a broken backup, but by a new backup', async () => {
  const broken = storeOf({ '1/manifest.json': manifestOf('1'), '2/manifest.json': new Error('reset') })
  assert.match(await readCatalog(broken).catch((error) => error.message), /reset/)
  const { runs, unreadable } = await readCatalog(broken, { anyFailure: true })
  assert.equal([runs.length, unreadable], [1, [{ run: '2', why: 'reset' }]])
  const refused = { '1/manifest.json': new Denied('no'), '2/manifest.json': '{', '3/manifest.json': manifestOf('4') }
  assert.is((await readCatalog(storeOf(refused))).unreadable.length, 3)
})

test('who restores is told what cannot be read or failed its test, and gets the latter by its name alone', async () => {
  const failure = JSON.stringify({ schema: 1, run: '2', at: NOW.toISOString(), by: 'kgc', error: 'a row is missing' })
  const store = storeOf({
    ...{ '1/manifest.json': manifestOf('1'), '1/verified.json': 'scribble', '2/manifest.json': manifestOf('2') },
    ...{ '2/not-restored.json': failure, '3/manifest.json': '{' },
  })
  const told: string[] = []
  const { runs } = await catalogToRestore(store, { warn: (text) => told.push(text) }, undefined)
  assert.equal(Object.fromEntries(runs.map(({ manifest }) => [manifest.run, manifest.complete])), { 1: true, 2: false })
  assert.match(told.join('\n'), /3 cannot be read[\s\S]*2 did not come up in its restore test: a row is missing/)
  const [, ...rows] = catalogTable(await readCatalog(store))
  assert.is(rows.find(([run]) => run === '2')?.at(-1), 'FAILED')
})

test('a manifest that cannot be had is in the way of no run that was asked for by its name', async () => {
  const down = new Error('HTTP 503')
  const store = storeOf({
    ...{ '1/manifest.json': manifestOf('1'), '1/verified.json': down, '1/not-restored.json': down },
    '2/manifest.json': down,
  })
  const told: string[] = []
  const take = (run: string | undefined) => catalogToRestore(store, { warn: (text) => told.push(text) }, run)
  for (const run of [undefined, 'latest', '2']) assert.match(await take(run).catch((error) => error.message), /503/)
  const { runs } = await take('1')
  assert.equal(
    runs.map(({ manifest }) => [manifest.run, manifest.complete]),
    [['1', false]],
  )
  assert.match(
    told.join('\n'),
    /2 cannot be read: HTTP 503[\s\S]*1 did not come up .*: the reason cannot be read: HTTP/,
  )
})

test('a restore test blames the backup for what was stored alone', () => {
  const blamed = (error: Error) => {
    try {
      return blame(error)
    } catch (thrown) {
      return thrown instanceof Damaged
    }
  }
  const failed = (why: string) => new ProgramFailed(`Restoring kgc failed: ${why}`)
  assert.is(blamed(failed('exit code 1. It printed:\nviolates check constraint "a"')), true)
  assert.is(blamed(failed('exit code 1. It printed:\nNo space left on device')), false)
  assert.is(blamed(failed('was ended by SIGKILL')), false)
  assert.is(blamed(new Stop('The store sent nothing.')), false)
  assert.is(blamed(new Damaged('It came back other than it was sent.')), true)
})

test('a backup whose manifest was hidden is no leftover: it is read in its first version', async () => {
  const store = storeOf({ '1/kgc': '', '1/manifest.json@1': manifestOf('1') }, [
    { key: '1/manifest.json', versionId: '1' },
  ])
  const { runs, leftovers } = await readCatalog(store)
  assert.equal(leftovers, [])
  assert.equal(
    runs.map(({ manifest, hidden }) => [manifest.run, hidden]),
    [['1', true]],
  )
})

test('what may still be at work elsewhere is not swept away', () => {
  const hours = (count: number) => new Date(NOW.getTime() - count * 3600_000)
  assert.is(isDead('ours', hours(0), ['ours'], NOW), true)
  assert.is(isDead('of another', hours(47), ['ours'], NOW), false)
  assert.is(isDead('of another', hours(49), ['ours'], NOW), true)
})

test('nothing goes while the newest failed its restore test, and one that failed is not kept for it', () => {
  const failure = { error: 'x' }
  assert.equal(gone([{ ...night(0), failure }, ...nights(1, 50)]), [])
  assert.equal(gone([...nights(0, 6), { ...night(60), failure }]), ['night-60'])
})

test('each night reads another thirtieth of the files, and after thirty nights all', () => {
  const read = Array.from({ length: 30 }, (_, night) => subsetOf(new Date(NOW.getTime() + night * DAY)))
  assert.is(new Set(read).size, 30)
  for (const subset of read) assert.match(subset, /^([1-9]|[12]\d|30)\/30$/)
})

test('a lock of restic is somebody’s, unless it is old, or a run of this server died and it is not renewed', () => {
  const lock = (minutes: number, hostname: string) => ({
    ...{ hostname, pid: 7, time: new Date(NOW.getTime() - minutes * 60_000).toISOString() },
  })
  const blocks = (minutes: number, hostname: string, died: boolean) =>
    lockOfOther([lock(99, 'kgc'), lock(minutes, hostname)], 'kgc', died, NOW) !== undefined
  assert.is(blocks(29, 'other', true), true)
  assert.is(blocks(31, 'other', false), false)
  assert.is(blocks(29, 'kgc', false), true)
  assert.is(blocks(11, 'kgc', true), false)
  assert.is(blocks(9, 'kgc', true), true)
})

test('the files of a run that is gone are forgotten, later, a few at once; nobody else’s are', () => {
  const snapshot = (id: string, daysOld: number, ...tags: string[]) => ({
    ...{ id, tags, time: new Date(NOW.getTime() - daysOld * DAY).toISOString() },
  })
  const known = [snapshot('there', 9, 'run=1'), snapshot('young', 1, 'run=2'), snapshot('by hand', 9, 'mine')]
  const gone = [3, 4, 5, 6].map((run) => snapshot(`gone-${run}`, 9, `run=${run}`))
  assert.equal(orphansAmong([...known, { id: 'bare', time: NOW.toISOString() }, ...gone], ['1'], NOW), [
    ...['gone-3', 'gone-4', 'gone-5'],
  ])
})

test('a volume that was emptied shows, also beside a large one', () => {
  const files = (each: Record<string, number>) => sizesOf({ ...MANIFEST, files: { ...FILES, each } })
  const before = files({ uploads: 1000, 'chatwoot-files': 1_000_000 })
  assert.equal(shrunkParts(before, files({ uploads: 0, 'chatwoot-files': 1_000_000 })), ['uploads'])
  assert.equal(shrunkParts(before, files({ uploads: 900, 'chatwoot-files': 1_000_000 })), [])
  assert.equal(shrunkParts(before, sizesOf(MANIFEST)), [])
  assert.match(metrics({ sizes: before }), /raw_bytes\{part="uploads"\} 1000/)
  assert.not.match(metrics({ sizes: before }), /stored_bytes\{part="uploads"/)
})

test('a backup that failed its restore test is not made again every hour', () => {
  const at = (hour: number, day = 23) => new Date(2026, 10, day, hour, 30)
  const state = { sizes: {}, lastMade: at(2).toISOString(), lastGood: at(2, 22).toISOString() }
  assert.is(isDue(state, at(12)), false)
  assert.is(isDue(state, at(3, 24)), true)
})

test('a dump is of one snapshot, without compression, and gives up on a lock', () => {
  assert.is(
    dumpCommand('kgc', '00000003-0000001B-1').shell,
    "pg_dump --format=custom --compress=0 --no-password '--snapshot=00000003-0000001B-1' '--lock-wait-timeout=60s' --dbname=kgc",
  )
})

test('the end of a pipeline comes only when every program in it ended well', async () => {
  assert.is(await text(sh`printf ${'a\nb'} | cat`, { what: 'it', signal }), 'a\nb')
  for (const programs of [
    'echo half; exit 3',
    '(echo half; exit 3) | cat',
    'echo half; kill -9 $$',
    'no-such-program',
  ]) {
    let read = ''
    let error: Error | undefined
    try {
      for await (const chunk of output(script(programs), { what: 'it', signal })) read += chunk
    } catch (reason) {
      error = reason as Error
    }
    assert.match(error?.message ?? `no error after ${read}`, /^it failed: /)
  }
})

test('a source that fails is reported as itself, and a pipeline that is told to stop stops', async () => {
  async function* failing() {
    yield Buffer.from('x')
    throw new Error('the cause')
  }
  const failed = await text(sh`cat`, { what: 'it', signal, input: failing() }).catch((error: Error) => error.message)
  assert.is(failed, 'the cause')
  const stop = new AbortController()
  const started = performance.now()
  const stopped = text(sh`sleep 60 | cat`, { what: 'it', signal: stop.signal }).catch((error: Error) => error.name)
  setTimeout(() => stop.abort(), 100)
  assert.is(await stopped, 'AbortError')
  assert.ok(performance.now() - started < 10_000)
})

test('progress has bytes, rate and what is left, of the part and of all', () => {
  const line = describeProgress({
    ...{ part: 'kgc', stored: 5e7, expected: 1e8, seconds: 10 },
    ...{ allStored: 5e7, allExpected: 2e8, allSeconds: 10 },
  })
  assert.match(line, /^kgc █{10}░{10} 50\.0 MB of about 100\.0 MB, 5\.0 MB\/s, 10\.0 s left; all 25 %, 30\.0 s left$/)
  const told: string[] = []
  const track = trackProgress({ kgc: 10 }, ({ part }) => told.push(part))
  for (let bytes = 1; bytes < 100; bytes++) track('kgc', bytes)
  assert.equal(told, ['kgc'])
})

test('progress passes through a line of output, and no other line is taken for it', () => {
  const progress = {
    ...{ part: 'kgc', stored: 5, expected: 10, seconds: 1.5 },
    ...{ allStored: 5, allExpected: 20, allSeconds: 2 },
  }
  assert.equal(parseProgress(progressLine(progress)), progress)
  assert.not.match(progressLine(progress), /\n/)
  for (const line of ['', '✔ kgc 3 s', '{"error": 1}']) assert.is(parseProgress(line), undefined)
})

test('Wasabi charges for 90 days: said there, where less are kept, and nowhere else', () => {
  assert.match(minimumCharge('https://s3.eu-central-1.wasabisys.com', 30) ?? '', /charges every object for 90 days/)
  for (const [endpoint, days] of [
    ['https://s3.eu-central-1.wasabisys.com', 90],
    ['https://s3.example.com', 30],
    ['https://s3.example.com/wasabisys.com', 30],
  ] as const)
    assert.is(minimumCharge(endpoint, days), undefined)
})

test('what S3 refuses is said in words, with what to check', () => {
  const { config } = validate(
    {
      S3_ENDPOINT: 'https://s3.example.com',
      S3_REGION: 'eu',
      S3_BUCKET: 'kgc-backup',
      S3_ACCESS_KEY_ID: 'k',
      S3_SECRET_ACCESS_KEY: 's',
    },
    ['objectStore'],
  )
  const failure = (name: string, status: number) =>
    Object.assign(new Error('UnknownError'), { name, $metadata: { httpStatusCode: status } })
  const words = (name: string, status: number) => explainS3(failure(name, status), config.objectStore).message
  assert.match(words('NoSuchBucket', 404), /there is no bucket kgc-backup/)
  assert.match(words('Forbidden', 403), /may not do this/)
  assert.match(words('QuotaExceeded', 403), /is full/)
  assert.match(words('InternalError', 500), /https:\/\/s3\.example\.com.*InternalError.*HTTP 500/)
})

/** A bucket with one object, which does what it is told to, or does not. */
function bucketOf(versionId: string, obeys: boolean) {
  let left = [{ Key: 'runs/1/kgc', VersionId: versionId }]
  const deleted: (string | undefined)[] = []
  class ListObjectVersionsCommand {}
  class DeleteObjectCommand {
    constructor(readonly input: { VersionId?: string }) {}
  }
  const send = async (command: object) => {
    if (command instanceof ListObjectVersionsCommand) return { Versions: left }
    deleted.push((command as DeleteObjectCommand).input.VersionId)
    if (obeys) left = []
    return {}
  }
  const bucket = { client: { send }, s3: { ListObjectVersionsCommand, DeleteObjectCommand }, Bucket: 'b' }
  return { bucket: bucket as unknown as Parameters<typeof removeAll>[0], deleted }
}

test('a removal names the version, also of an object older than versions, and ends where the store does not obey', async () => {
  const old = bucketOf('null', true)
  assert.is(await removeAll(old.bucket, 'runs/1/', ''), true)
  assert.equal(old.deleted, ['null'])
  assert.is(await removeAll(bucketOf('null', false).bucket, 'runs/1/', ''), false)
  const stopped = await removeAll(bucketOf('1', true).bucket, '', '', AbortSignal.abort()).catch((error) => error.name)
  assert.is(stopped, 'AbortError')
})

test('uploads that were left open are aborted on every page, but those of who may still work', async () => {
  const pages = [
    { Uploads: [{ Key: 'kgc/runs/1/a' }, { Key: 'kgc/pitr/x' }], IsTruncated: true, NextKeyMarker: '2' },
    { Uploads: [{ Key: 'kgc/restic/y' }], IsTruncated: false },
  ]
  class ListMultipartUploadsCommand {
    constructor(readonly input: { KeyMarker?: string }) {}
  }
  class AbortMultipartUploadCommand {
    constructor(readonly input: { Key: string }) {}
  }
  const aborted: string[] = []
  const send = async (command: object) => {
    if (command instanceof ListMultipartUploadsCommand) return pages[command.input.KeyMarker === '2' ? 1 : 0]
    return aborted.push((command as AbortMultipartUploadCommand).input.Key)
  }
  const bucket = { client: { send }, s3: { ListMultipartUploadsCommand, AbortMultipartUploadCommand }, Bucket: 'b' }
  const count = await abortUploads(bucket as unknown as Parameters<typeof abortUploads>[0], 'kgc/', (key) =>
    /runs|restic/.test(key),
  )
  assert.is(count, 2)
  assert.equal(aborted, ['kgc/runs/1/a', 'kgc/restic/y'])
})

test('a manifest that was overwritten or marked as removed is known by its first version', () => {
  const version = (key: string, versionId: string, etag: string, latest: boolean): Version => ({
    ...{ key, versionId, etag, latest, modified: NOW, size: 1 },
  })
  const hidden = hiddenAmong([
    version('overwritten', '2', 'b', true),
    version('overwritten', '1', 'a', false),
    version('removed', '1', 'a', false),
    version('sent-twice', '2', 'a', true),
    version('sent-twice', '1', 'a', false),
    version('plain', 'null', 'a', true),
  ])
  assert.equal(
    hidden.map(({ key, versionId }) => [key, versionId]),
    [
      ['overwritten', '1'],
      ['removed', '1'],
    ],
  )
})

test('the configuration of a backup is refused with what it should be', () => {
  const { problems } = validate(
    { BACKUP_RECIPIENTS: 'AGE-SECRET-KEY-1X', BACKUP_KEEP_DAYS: '0', S3_ENDPOINT: 'wasabi', S3_BUCKET: 'A' },
    ['backup', 'objectStore'],
  )
  assert.match(problems.join('\n'), /BACKUP_RECIPIENTS is not a list of public keys/)
  assert.not.match(problems.join('\n'), /AGE-SECRET-KEY-1X/)
  for (const name of ['BACKUP_KEEP_DAYS', 'S3_ENDPOINT', 'S3_BUCKET', 'S3_REGION', 'S3_ACCESS_KEY_ID'])
    assert.match(problems.join('\n'), new RegExp(`^${name} `, 'm'))
})

test.run()
