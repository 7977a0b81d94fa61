import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parse } from 'yaml'
import { messageOf } from '../../lib/errors.ts'
import {
  chooseBackup,
  compareRows,
  download,
  newVolume,
  parseBackups,
  restoreArguments,
} from '../../lib/pitr/cluster.ts'
import { type PitrRun, restoreBesideOnly, restoreToTime, undoRestore } from '../../lib/pitr/restore.ts'
import { parseFound } from '../../lib/pitr/server.ts'
import { swapTo } from '../../lib/pitr/swap.ts'
import type { Command } from '../../lib/shell.ts'
import { parseWhen } from '../../lib/when.ts'
import { PROJECT_DIR } from '../rehearsal/names.ts'

const test = suite('point in time')

const NOW = new Date('2026-11-23T13:00:00Z')
const at = (text: string) => parseWhen(text, NOW)

for (const [text, utc] of [
  ['13:59', '2026-11-23T12:59:00.000Z'],
  ['2026-11-22 23:30', '2026-11-22T22:30:00.000Z'],
  ['2026-07-01 08:00:30', '2026-07-01T06:00:30.000Z'],
  ['2026-11-23T12:00:00Z', '2026-11-23T12:00:00.000Z'],
  ['2026-11-23 12:00:00.250+02:00', '2026-11-23T10:00:00.250Z'],
  // Clocks go forward over the first and back over the second.
  ['2026-03-29 03:00', '2026-03-29T01:00:00.000Z'],
  ['2025-10-26 01:59', '2025-10-25T23:59:00.000Z'],
  ['2025-10-26 03:00', '2025-10-26T02:00:00.000Z'],
] as const) {
  test(`${text} is ${utc}`, () => assert.is((at(text) as Date).toISOString(), utc))
}

for (const text of ['', 'yesterday', '25:00', '2026-13-01 10:00', '14', '2026-11-23', '14:00:01', "12:00'; drop"]) {
  test(`'${text}' is refused as a time, before anything is touched`, () => assert.throws(() => at(text), /--time/))
}

const info = (...backups: [label: string, stop: string, error?: boolean][]) =>
  parseBackups(
    JSON.stringify([
      {
        backup: backups.map(([label, stop, error = false]) => ({
          ...{ label, type: 'full', error, info: { size: 1 } },
          timestamp: { start: Date.parse(stop) / 1000 - 60, stop: Date.parse(stop) / 1000 },
        })),
      },
    ]),
  )
const BACKUPS = info(
  ['late', '2026-11-23T04:00:00Z'],
  ['early', '2026-11-22T04:00:00Z'],
  ['torn', '2026-11-23T05:00:00Z', true],
)

test('the backup to start from is the last good one that had ended by then', () => {
  assert.is(chooseBackup(BACKUPS, 'newest').label, 'late')
  assert.is(chooseBackup(BACKUPS, new Date('2026-11-23T04:00:00Z')).label, 'late')
  assert.is(chooseBackup(BACKUPS, new Date('2026-11-23T03:59:59Z')).label, 'early')
  assert.throws(() => chooseBackup(BACKUPS, new Date('2026-11-22T03:59:59Z')), /earliest .* 2026-11-22 05:00:00/)
  assert.throws(() => chooseBackup([], 'newest'), /no backup/)
})

test('data is looked for on the line that served, not on the latest one', () => {
  const [backup] = BACKUPS
  assert.ok(backup)
  const toTime = restoreArguments(backup, new Date('2026-11-23T04:00:00.5Z'))
  assert.ok(toTime.includes('--target=2026-11-23 04:00:00.500+00'))
  assert.ok(toTime.includes('--target-timeline=current'))
  assert.ok(restoreArguments(backup, 'newest').includes('--target-timeline=current'))
})

test("a restored cluster's volume is labeled as ours before anything is put into it", () => {
  const [backup] = BACKUPS
  assert.ok(backup)
  assert.match(
    download('vol', backup, 'newest').shell,
    /set -e\ndocker volume create (--label \S+ ){2}--label 'kgc\.pitr=newest' vol > \/dev\/null\n.* restore /,
  )
})

test('what never served may be removed; what serves or served may not', () => {
  const found = parseFound(
    [
      'pitr=on\nvolume=kgc_postgres-data-2\nfree=1024\nswap=kgc_postgres-data-3\nkeeper=true\nsystem=7',
      'record={"at":"","volume":"kgc_postgres-data-2","was":"kgc_postgres-data-1","target":""}',
      ...[1, 2, 3, 4].map((n) => `made=kgc_postgres-data-${n}`),
      'info=[{"db":[{"system-id":7}]}]',
    ].join('\n'),
  )
  assert.equal(found.leftovers, ['kgc_postgres-data-4'])
  assert.is(found.live, 'ours')
  assert.is(found.freeBytes, 1024 ** 2)
})

test('a cluster that is not the one in S3 is told from it, and one that is down from both', () => {
  assert.is(parseFound('system=8\ninfo=[{"db":[{"system-id":7}]}]').live, 'another')
  assert.is(parseFound('system=\ninfo=[{"db":[{"system-id":7}]}]').live, 'down')
  assert.is(parseFound('').volume, 'kgc_postgres-data')
})

test('differences are told in rows', () => {
  assert.equal(compareRows('kgc', 'public.a|3\npublic.b|1\npublic.c|5\n', 'public.a|2\npublic.c|5\npublic.d|4'), [
    'kgc: public.a 3 -> 2 rows (-1)',
    'kgc: public.b with 1 rows goes',
    'kgc: public.d with 4 rows comes back',
  ])
})

test('a swap writes the copy of the secrets for nobody else to read, and never half of it', () => {
  const { shell } = swapTo(newVolume(NOW), "14:00 o'clock")
  assert.match(shell, /kgc_postgres-data-20261123T130000/)
  assert.ok(shell.indexOf('umask 077') < shell.indexOf('.env.next'))
  assert.not.match(shell, /docker volume rm/)
})

const undone = (...survey: string[]) => tried(undoRestore, survey)

/** A dry run. @returns what it would run, and what it says */
async function tried(work: (run: PitrRun) => Promise<void>, survey: string[]) {
  const record = JSON.stringify({
    at: '2026-11-23T12:00:00Z',
    volume: 'kgc_postgres-data-2',
    was: 'kgc_postgres-data',
    target: 't',
  })
  const found = [...survey, 'volume=kgc_postgres-data-2', 'exists=kgc_postgres-data', `record=${record}`, 'system=7']
  const commands: string[] = []
  const said: string[] = []
  const say = (text: string) => said.push(text)
  const write = async ({ shell }: Command) => {
    commands.push(shell)
    return ''
  }
  await work({
    server: {
      name: 'server',
      read: async () => found.join('\n'),
      write,
      probe: async () => ({ code: 0, stdout: '', stderr: '' }),
    },
    log: { step: (_: string, work: () => unknown) => work(), say, warn: say, result: say },
    ...{ actor: { who: 'w', from: 'f' }, dryRun: true, wait: 0 },
  } as unknown as PitrRun).catch((error) => say(messageOf(error)))
  return { commands: commands.join('\n'), said: said.join('\n') }
}

test('the old cluster is on the server, and serves again also when the log in S3 cannot be had', async () => {
  const swap = swapTo('kgc_postgres-data', 'undo of t').shell
  for (const survey of [[], ['pitr=on'], ['pitr=on', 'keeper=true']]) {
    const { commands, said } = await undone(...survey)
    assert.ok(commands.includes(swap))
    assert.not.match(commands, /--no-deps postgres-restore|touch recovery\.signal/)
    // An undo that died may have left it.
    assert.ok(commands.indexOf('-f /data/recovery.signal') < commands.indexOf(swap))
    assert.match(commands, /--volume kgc_postgres-data:\/data --entrypoint rm .* -f \/data\/recovery\.signal/)
    assert.match(said, /It is not tried beside what serves/)
  }
  const { commands } = await undone('pitr=on', 'keeper=true', 'info=[{"db":[{"system-id":7}]}]')
  assert.match(commands, /recovery\.signal[\s\S]* up -d --no-deps postgres-restore/)
  assert.ok(commands.includes(swap))
})

test('while the log in S3 cannot be had, a restore removes nothing that an earlier one left beside', async () => {
  for (const work of [restoreToTime, restoreBesideOnly]) {
    const { commands, said } = await tried((run) => work(run, 'newest'), ['made=kgc_postgres-data-3'])
    assert.is(commands, '')
    assert.match(said, /recovery is off[\s\S]*kgc_postgres-data-2 serves, as before/)
  }
})

test('switched off, nothing of it is there; switched on, S3 and the key are asked for', () => {
  const file = (name: string) => readFileSync(join(PROJECT_DIR, `compose/pitr-${name}.yaml`), 'utf8')
  const off = parse(file('off'))
  assert.not(JSON.stringify(off.services.postgres).match(/archive|egress|pgbackrest/))
  for (const name of ['pitr', 'postgres-restore']) assert.equal(off.services[name].profiles, ['pitr'])
  for (const name of ['PITR_ENCRYPTION_KEY', 'S3_ENDPOINT', 'S3_REGION', 'S3_BUCKET', 'S3_ACCESS_KEY_ID'])
    assert.ok(file('on').includes(`\${${name}:?`), name)
})

test.run()
