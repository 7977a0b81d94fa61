import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { DatabaseBackup, Manifest } from '../../lib/backup/manifest.ts'
import type { ObjectStore } from '../../lib/backup/object-store.ts'
import { EXIT, Stop } from '../../lib/errors.ts'
import type { Host } from '../../lib/host.ts'
import type { Log } from '../../lib/log.ts'
import { parseFound } from '../../lib/pitr/server.ts'
import { assertAsAsked, lastOfAll, undoSwaps } from '../../lib/restore/aside.ts'
import { completeCutOff } from '../../lib/restore/cut-off.ts'
import { download, withDownloads, writeAll } from '../../lib/restore/fetch.ts'
import { assertAllRestored, restoreFilesBeside } from '../../lib/restore/files.ts'
import { readIdentities, recipientsOf } from '../../lib/restore/identity.ts'
import { besideName, findBeside, readStamp, stampOf } from '../../lib/restore/names.ts'
import {
  ago,
  describeLoss,
  differingCounts,
  diskNeed,
  obstacles,
  pickDatabases,
  pickRun,
} from '../../lib/restore/plan.ts'
import { ONLY_MISSING } from '../../lib/restore/roles.ts'
import type { DatabaseServer } from '../../lib/restore/server.ts'
import type { Session } from '../../lib/restore/session.ts'
import {
  createBeside,
  dropUnserved,
  giveProperties,
  identifier,
  literal,
  reverse,
  swapSql,
} from '../../lib/restore/sql.ts'
import { exchangeDatabases, swapScript, writersOf } from '../../lib/restore/swap.ts'
import { taskOf } from '../../lib/restore/task.ts'
import type { Command } from '../../lib/shell.ts'
import { parseTime } from '../../lib/when.ts'

const test = suite('restore: what is decided before anything is touched')

const GIB = 1024 ** 3
const folder = mkdtempSync(join(tmpdir(), 'kgc-restore-test-'))
const hashOf = (text: string) => createHash('sha256').update(text).digest('hex')

const database = (name: string, changes: Partial<DatabaseBackup> = {}): DatabaseBackup => ({
  ...{ name, key: `kgc/runs/r/${name}`, rawBytes: GIB, rawSha256: hashOf(''), storedBytes: GIB / 4 },
  ...{ storedSha256: hashOf(''), parts: 1, partSize: 1, seconds: 1, snapshot: '', lsn: '0/0', size: 2 * GIB },
  ...{ at: '2026-11-23T01:00:00.000Z', rows: { 'public.work': 5 }, owner: name, acl: null, settings: [] },
  ...{ extensions: { plpgsql: '1.0' }, encoding: 'UTF8', collate: 'C.UTF-8', ctype: 'C.UTF-8', localeProvider: 'icu' },
  ...{ icuLocale: 'hu-HU', collationVersion: null, connectionLimit: -1 },
  ...changes,
})
const manifest = (run: string, started: string, changes: Partial<Manifest> = {}): Manifest => ({
  ...{ schema: 1, run, host: 'kgc-erp', started, ended: started, complete: true, failed: [], commit: 'c', tools: {} },
  ...{ server: { versionNum: 150018, systemIdentifier: '77' }, clockOffsetSeconds: 0, recipients: ['age1ours'] },
  ...{ databases: [database('kgc'), database('twenty')] },
  ...{ verified: { read: true, at: started, seconds: 1 } },
  ...changes,
})
const server = (changes: Partial<DatabaseServer> = {}): DatabaseServer => ({
  ...{
    version: 150018,
    system: '77',
    roles: ['kgc', 'twenty'],
    extensions: ['plpgsql'],
    databases: [],
    free: 100 * GIB,
  },
  ...{ cores: 2, files: {}, ...changes },
})
const AT_HAND = { recipients: ['age1ours'], localFree: 10 * GIB, otherServer: false, files: undefined }
const RUNS = [
  manifest('c', '2026-11-23T01:00:00.000Z', { complete: false }),
  manifest('b', '2026-11-22T01:00:00.000Z'),
  manifest('a', '2026-11-21T01:00:00.000Z'),
]
const CATALOG = { runs: RUNS.map((one) => ({ manifest: one, stored: new Date(0), bytes: 1 })) }
const stopsWith = (work: () => unknown, message: RegExp, code: number = EXIT.usage) => {
  try {
    work()
  } catch (error) {
    assert.instance(error, Stop)
    assert.match((error as Stop).message, message)
    assert.is((error as Stop).code, code)
    return
  }
  assert.unreachable('nothing was refused')
}

test('one thing is asked for, and flags that do not fit it are refused', () => {
  assert.is(taskOf({ db: 'kgc', before: '02:00', undo: false }), 'backup')
  assert.is(taskOf({ time: '14:05', 'keep-side': true }), 'time')
  assert.is(taskOf({ undo: true, files: true }), 'undo')
  assert.is(taskOf({ grafana: true, run: 'x' }), 'part')
  for (const [flags, message] of [
    [{}, /Say one thing to do/],
    [{ run: 'x' }, /Say one thing to do/],
    [{ undo: true, time: '10:00' }, /Say one thing to do/],
    [{ time: '10:00', db: 'kgc' }, /--db does not go with --time.*--before/],
    [{ undo: true, 'keep-side': true }, /--keep-side does not go with --undo/],
    [{ grafana: true, db: 'kgc' }, /--grafana does not go with a restore of databases/],
    [{ undo: true, queue: true, grafana: true }, /exclude each other/],
    [{ all: true, files: true }, /--all and --files exclude each other/],
    [{ db: 'kgc', run: 'x', before: '02:00' }, /--run and --before exclude each other/],
  ] as const)
    stopsWith(() => taskOf(flags), message)
})

test('takes the newest complete run, never one of which a part failed', () => {
  assert.is(pickRun(CATALOG, {}).run, 'b')
  assert.is(pickRun(CATALOG, { run: 'c' }).run, 'c')
})

test('takes the newest run from before a time', () => {
  assert.is(pickRun(CATALOG, { before: parseTime('--before', '2026-11-21 03:00') }).run, 'a')
  stopsWith(() => pickRun(CATALOG, { before: new Date('2020-01-01T00:00:00Z') }), /no complete backup from before 2020/)
  stopsWith(() => parseTime('--before', 'newest'), /--before newest is not a time/)
})

test('refuses a run and a database that are not there, and names those that are', () => {
  stopsWith(() => pickRun(CATALOG, { run: 'x' }), /There is no backup x/)
  stopsWith(() => pickDatabases(RUNS[0] as Manifest, ['kgc', 'nope']), /no database nope\. It has kgc, twenty/)
  assert.equal(
    pickDatabases(RUNS[0] as Manifest, undefined).map(({ name }) => name),
    ['kgc', 'twenty'],
  )
  assert.equal(
    pickDatabases(RUNS[0] as Manifest, ['twenty', 'kgc', 'twenty']).map(({ name }) => name),
    ['twenty', 'kgc'],
  )
})

test('finds nothing in the way of a restore that can work', () => {
  assert.equal(obstacles(RUNS[1] as Manifest, [database('kgc')], server(), AT_HAND), [])
})

for (const [what, found, hand, message] of [
  ['a newer major version', server({ version: 140012 }), AT_HAND, /of PostgreSQL 15, and the server has 14/],
  ['a backup of another server', server({ system: '78' }), AT_HAND, /of another server: kgc-erp.*--other-server/],
  ['a role that is missing', server({ roles: [] }), AT_HAND, /roles: kgc/],
  ['an extension that is missing', server({ extensions: [] }), AT_HAND, /extensions: plpgsql/],
  ['too little disk on the server', server({ free: 4 * GIB }), AT_HAND, /has 4\.3 GB free, and this needs 5\.6 GB/],
  ['too little disk here', server(), { ...AT_HAND, localFree: 0 }, /This machine has 0\.0 MB free/],
  [
    'the wrong identity',
    server(),
    { ...AT_HAND, recipients: ['age1other'] },
    /is age1other, and the backup is for age1ours/,
  ],
] as const) {
  test(`refuses ${what}`, () => {
    const problems = obstacles(RUNS[1] as Manifest, [database('kgc')], found, {
      ...hand,
      recipients: [...hand.recipients],
    })
    assert.is(problems.length, 1)
    assert.match(problems[0] ?? '', message)
  })
}

test('an older minor version and, when it is said, another server are no obstacle', () => {
  assert.equal(obstacles(RUNS[1] as Manifest, [database('kgc')], server({ version: 150001 }), AT_HAND), [])
  const other = { ...AT_HAND, otherServer: true }
  assert.equal(obstacles(RUNS[1] as Manifest, [database('kgc')], server({ system: '78' }), other), [])
})

test('names every obstacle at once', () => {
  const found = server({ version: 140000, system: '78', free: 0 })
  assert.is(obstacles(RUNS[1] as Manifest, [database('kgc')], found, AT_HAND).length, 3)
})

test('needs room for all databases beside those that serve, and for one unpacked dump at a time', () => {
  assert.is(Math.round(diskNeed([database('kgc'), database('twenty')]) / GIB), Math.round(2 * 2.2 + 1 + 2))
})

test('says what would be lost, in rows by table and in time', () => {
  assert.match(describeLoss({ a: 7, b: 1, c: 100 }, { a: 5, b: 1, c: 50 }), /^52 rows that were added \(c 50, a 2\)/)
  assert.match(describeLoss({ a: 1 }, { a: 5 }), /no table has more rows now/)
  assert.match(describeLoss(undefined, { a: 5 }), /no such database now/)
  assert.is(ago((26 * 60 + 3) * 60_000), '1 d 2 h 3 min')
  assert.is(ago(0), '0 min')
})

test('sees a table that is missing, one too many, and one row less', () => {
  assert.equal(differingCounts({ a: 1, b: 2 }, { a: 1, b: 2 }), [])
  assert.equal(differingCounts({ a: 1, c: 2 }, { a: 2, b: 2 }), [
    'a: 1 rows instead of 2',
    'c: 2 rows instead of none',
    'b: missing rows instead of 2',
  ])
})

test('names databases so that they need no quotes, and finds its own among others, newest first', () => {
  const stamp = stampOf(new Date('2026-11-23T02:03:04.567Z'))
  assert.is(besideName('kgc', 'old', stamp), 'kgc_old_20261123t020304')
  assert.is(readStamp(stamp), '2026-11-23 02:03:04')
  const names = ['kgc', 'kgc_old_20261122t000000', 'old_invoices', 'kgc_old_mine', 'twenty_restore_20261123t000000']
  assert.equal(
    findBeside(names).map(({ name }) => name),
    ['twenty_restore_20261123t000000', 'kgc_old_20261122t000000'],
  )
})

const SWAP = { database: 'kgc', next: 'kgc_restore_1', aside: 'kgc_old_1', why: "it's old" }

test('exchanges all databases in one transaction, and commits nothing before it', () => {
  const sql = swapSql([SWAP, { ...SWAP, database: 'twenty', next: 'twenty_restore_1', aside: 'twenty_old_1' }])
  const lines = sql.split('\n')
  assert.equal(
    lines.filter((line) => /^(BEGIN|COMMIT);$/.test(line)),
    ['BEGIN;', 'COMMIT;'],
  )
  assert.is(lines.filter((line) => line.includes('RENAME TO')).length, 4)
  assert.not.match(sql.slice(0, sql.indexOf('BEGIN;')), /ALTER/)
  assert.match(sql, /COMMENT ON DATABASE "kgc_old_1" IS 'it''s old'/)
})

test('taking a swap back puts the old database in its place; one that had no predecessor only goes', () => {
  assert.match(swapSql([reverse(SWAP)]), /"kgc" RENAME TO "kgc_restore_1"[\s\S]*"kgc_old_1" RENAME TO "kgc"/)
  const alone = swapSql([reverse({ ...SWAP, aside: undefined })])
  assert.is(alone.match(/RENAME/g)?.length, 1)
})

test('of restored databases, one that served and was exchanged back is kept as a copy', () => {
  const side = 'kgc_restore_20261123t020000'
  const copy = 'kgc_copy_20261123t020000'
  const why = /COMMENT ON DATABASE "kgc_restore_1" IS '(.*)'/.exec(swapSql([reverse(SWAP)]))?.[1]
  const [keep = '', drop] = dropUnserved(findBeside([side])).split(/\n(?=DROP)/)
  assert.ok(keep.includes(`'ALTER DATABASE "${side}" RENAME TO "${copy}"'`), keep)
  assert.ok(
    keep.includes(`WHERE datname = '${side}' AND shobj_description(oid, 'pg_database') = '${why}' \\gexec`),
    keep,
  )
  assert.is(drop, `DROP DATABASE IF EXISTS "${side}" WITH (FORCE);`)
})

test('while an exchange lies half done that cannot be completed, nothing is begun but a restore of the whole cluster, or its undo', async () => {
  const warned: string[] = []
  const session = {
    server: {
      probe: async ({ shell }: Command) => ({
        code: 0,
        stderr: '',
        stdout: shell.startsWith('cat ') ? '{"what":"kgc"}' : '',
      }),
    },
    log: { warn: (text: string) => warned.push(text) },
  } as unknown as Session
  for (const task of ['part', 'undo', 'backup', 'drop'] as const)
    await rejectsWith(
      completeCutOff(session, task, true),
      /exchange of kgc was cut off.*when PostgreSQL runs.*Nothing was touched/,
    )
  await completeCutOff(session, 'time', false)
  await completeCutOff(session, 'undo', false)
  for (const text of warned) assert.match(text, /The next restore or undo does it/)
  assert.is(warned.length, 2)
})

test('undoes the last swap as a whole, or the named part of it', () => {
  const names = ['kgc', 'twenty', 'kgc_old_20261123t000000', 'twenty_old_20261123t000000', 'kgc_old_20261101t000000']
  assert.equal(
    undoSwaps(names, 's', undefined).map(({ next }) => next),
    names.slice(2, 4),
  )
  assert.equal(
    undoSwaps(names, 's', ['kgc']).map(({ next, aside }) => [next, aside]),
    [['kgc_old_20261123t000000', 'kgc_old_s']],
  )
  stopsWith(() => undoSwaps(['kgc'], 's', undefined), /nothing to undo/)
})

test('what was confirmed is not done when something else was restored or removed meanwhile', () => {
  assert.not.throws(() => assertAsAsked(['kgc', 'kgc_old_1'], ['kgc', 'kgc_old_1']))
  stopsWith(() => assertAsAsked(['kgc', 'kgc_old_1'], ['kgc']), /meanwhile. Nothing was touched/, EXIT.failed)
})

test('undoes the later of the two: a restore of the cluster, or of databases', () => {
  const record = JSON.stringify({ at: '2026-11-23T12:00:00Z', volume: 'b', was: 'a', target: 't' })
  const aside = (stamp: string, volumes = 'exists=a') => ({
    clusters: parseFound(`volume=b\n${volumes}\nrecord=${record}`),
    server: server({ databases: [{ name: `kgc_old_${stamp}`, bytes: 1, comment: null, isPlain: false }] }),
  })
  assert.is(lastOfAll(aside('20261123t115959'))?.was, 'a')
  assert.is(lastOfAll(aside('20261123t120001')), undefined)
  assert.is(lastOfAll(aside('20261123t115959', '')), undefined, 'that cluster was removed')
})

test('stops the services that have the password of the database, and no others', () => {
  assert.equal(writersOf('twenty'), ['twenty', 'twenty-worker'])
  assert.ok(writersOf('kgc').includes('kgc-backend-blue'))
  assert.equal(writersOf('nope'), [])
  assert.match(
    swapScript(exchangeDatabases([SWAP])).shell,
    /for service in kgc-backend-blue kgc-backend-green kgc-migrate; do/,
  )
})

test('of the roles of a backup, only those that are missing are made, with what they are members of', () => {
  const there = join(folder, 'there')
  writeFileSync(there, 'postgres\nkgc\n"Odd name"\n')
  const kept = [
    'CREATE ROLE kgc_x;',
    "ALTER ROLE kgc_x WITH LOGIN PASSWORD 'SCRAM';",
    'GRANT kgc TO kgc_x GRANTED BY postgres;',
  ]
  const dump = [
    ...[
      'CREATE ROLE kgc;',
      'ALTER ROLE kgc WITH NOLOGIN;',
      'ALTER ROLE "Odd name" WITH LOGIN;',
      'CREATE ROLE postgres;',
    ],
    ...['SET client_encoding = 1;', 'GRANT kgc_x TO kgc GRANTED BY postgres;', ...kept],
  ]
  const { stdout } = spawnSync('awk', [ONLY_MISSING, there, '-'], { input: `${dump.join('\n')}\n`, encoding: 'utf8' })
  assert.equal(stdout.trim().split('\n'), kept)
})

test('a role that is missing is no obstacle where the roles are restored, too', () => {
  const globals = database('roles')
  const run = { ...(RUNS[1] as Manifest), globals }
  const other = { ...AT_HAND, otherServer: true }
  assert.equal(obstacles(run, [database('kgc')], server({ system: '78', roles: [] }), other), [])
})

test('quotes names and texts for SQL', () => {
  assert.is(identifier('a"b'), '"a""b"')
  assert.is(literal("o'clock"), "'o''clock'")
  assert.match(
    createBeside('s', database('kgc', { localeProvider: 'libc', icuLocale: null }), 'c'),
    /libc\n {2}LC_COLLATE/,
  )
  assert.match(
    giveProperties(database('kgc', { acl: ['kgc=CTc/kgc'], settings: [{ role: 'kgc_a', setting: 'a=b' }] }), 's'),
    /ARRAY\['kgc=CTc\/kgc'\]::aclitem\[\][\s\S]*'"kgc_a"'::regrole::oid AS setrole, 'a=b' AS one/,
  )
})

/** A store with one object that is cut off after so many bytes, as often as said. */
function storeOf(content: Buffer, { cutAt = Number.POSITIVE_INFINITY, cuts = 0 } = {}) {
  const asked: number[] = []
  async function* get(_key: string, { from = 0 } = {}) {
    asked.push(from)
    const cut = asked.length <= cuts
    const end = cut ? Math.min(content.length, from + cutAt) : content.length
    for (let at = from; at < end; at += 100) yield content.subarray(at, Math.min(end, at + 100))
    if (cut) throw new Error('cut')
  }
  return { get, asked }
}
const CONTENT = Buffer.from(Array.from({ length: 1000 }, (_, i) => i % 251))
const STORED = { ...database('kgc'), storedBytes: 1000, storedSha256: hashOf(CONTENT as unknown as string) }
let files = 0
const fetched = async (content: Buffer, faults = {}) => {
  const store = storeOf(content, faults)
  const file = join(folder, `download-${files++}`)
  await download(store, STORED, file)
  return { store, file }
}
const rejectsWith = async (work: Promise<unknown>, message: RegExp) =>
  assert.match(
    await work.then(
      () => 'nothing was refused',
      (error: Error) => error.message,
    ),
    message,
  )

test('downloads what was stored, and goes on where a connection broke', async () => {
  const { store, file } = await fetched(CONTENT, { cutAt: 300, cuts: 3 })
  assert.equal(store.asked, [0, 300, 600, 900])
  assert.is(Buffer.compare(readFileSync(file), CONTENT), 0)
})

test('files are counted over all volumes before any of them is exchanged', () => {
  assert.not.throws(() => assertAllRestored('restored=2\nrestored=0\nrestored=5', 7))
  assert.not.throws(() => assertAllRestored('', 7), 'a dry run')
  stopsWith(() => assertAllRestored('restored=0\nrestored=0', 7), /^0 files came back instead of the 7/, EXIT.failed)
})

test('what a manifest calls a database leads to no other folder', async () => {
  const log = { step: (_: string, work: () => unknown) => work(), progress: () => {} } as unknown as Log
  const wanted = ['kgc', '../kgc', '..'].map((name) => ({ ...STORED, name }))
  await withDownloads(log, storeOf(CONTENT) as unknown as ObjectStore, wanted, async (files) => {
    const paths = wanted.map(({ name }) => files[name] ?? '')
    assert.equal([...new Set(paths.map((path) => basename(path)))], ['0-kgc', '1-kgc', '2-..'])
    assert.is(new Set(paths.map(dirname)).size, 1)
  })
})

test('what a manifest says of the files is text for a shell, never a part of it', async () => {
  let ran = ''
  const host = {
    write: async ({ shell }: Command) => {
      ran = shell
      return ''
    },
  } as unknown as Host
  const log = { step: (_: string, work: () => unknown) => work() } as unknown as Log
  const files = { repository: 'kgc/$(id)', snapshot: '--password-command=id; id', paths: [], files: 1, bytes: 1 }
  await restoreFilesBeside(host, log, files, 's')
  // The program is itself one quoted word.
  const program = ran.replaceAll(`'\\''`, "'")
  assert.match(
    program,
    /-r "s3:\$S3_ENDPOINT\/\$S3_BUCKET\/"'kgc\/\$\(id\)' restore .* -- '--password-command=id; id'\n/,
  )
})

test('a disk that takes less than it was given gets the rest, and one that refuses is told from a damaged object', async () => {
  const kept = Buffer.alloc(CONTENT.length)
  const write = async (chunk: Buffer, from: number, length: number, position: number) => {
    const bytesWritten = Math.min(length, 7)
    chunk.copy(kept, position, from, from + bytesWritten)
    return { bytesWritten, buffer: chunk }
  }
  await writeAll({ write } as unknown as FileHandle, CONTENT.subarray(0, 500), 0)
  await writeAll({ write } as unknown as FileHandle, CONTENT.subarray(500), 500)
  assert.is(Buffer.compare(kept, CONTENT), 0)
  const full = async () => {
    throw new Error('No space left')
  }
  await rejectsWith(writeAll({ write: full } as unknown as FileHandle, CONTENT, 0), /No space left/)
})

test('gives up when a connection breaks again and again without bringing anything', () =>
  rejectsWith(fetched(CONTENT, { cutAt: 0, cuts: 99 }), /cut/))

test('refuses an object that is cut short, one that grew, and every single flipped bit of a hundred', async () => {
  await rejectsWith(fetched(CONTENT.subarray(0, 999)), /it has 999 bytes, and had 1000/)
  await rejectsWith(fetched(Buffer.concat([CONTENT, CONTENT])), /it has 2000 bytes/)
  for (let i = 0; i < 100; i++) {
    const flipped = Buffer.from(CONTENT)
    const at = i * 10
    flipped[at] = (flipped[at] ?? 0) ^ (1 << (i % 8))
    await rejectsWith(fetched(flipped), /its content is not what was stored/)
  }
})

test('takes an identity file as age-keygen writes it, and none that others can read', async () => {
  const { generateX25519Identity } = await import('age-encryption')
  const identity = await generateX25519Identity()
  const file = join(folder, 'identity')
  writeFileSync(file, `# created: today\n# public key: age1…\n${identity}\n`, { mode: 0o600 })
  assert.equal(readIdentities(file), [identity])
  assert.match((await recipientsOf([identity]))[0] ?? '', /^age1/)
  chmodSync(file, 0o644)
  stopsWith(() => readIdentities(file), /others on this machine can read it/)
  writeFileSync(join(folder, 'empty'), 'nothing\n', { mode: 0o600 })
  stopsWith(() => readIdentities(join(folder, 'empty')), /no age identity/)
})

test.run()
