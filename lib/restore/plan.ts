import { type Catalog, gigabytes } from '../backup/catalog.ts'
import type { DatabaseBackup, Manifest } from '../backup/manifest.ts'
import { EXIT, Stop } from '../errors.ts'
import { local } from '../when.ts'
import { besideName, FILES } from './names.ts'
import type { DatabaseServer } from './server.ts'

/** A restored database can be larger than it was when it was backed up: part of it may have been deleted since. */
const ROOM = 1.1
/** The write-ahead log, twice max_wal_size: a server that cannot write it stops. */
const SPARE = 2 * 1024 ** 3

/**
 * The run that was asked for.
 * @param runs the newest first; of a run that is not complete only what it has can be restored, and only by its name
 * @throws Stop (exit 2) when there is none such
 */
export function pickRun(
  { runs }: Pick<Catalog, 'runs'>,
  { run = 'latest', before }: { run?: string | undefined; before?: Date | undefined },
): Manifest {
  const until = before?.getTime() ?? Number.POSITIVE_INFINITY
  const found =
    run === 'latest'
      ? runs.find(({ manifest: { started, complete } }) => complete && Date.parse(started) <= until)
      : runs.find(({ manifest }) => manifest.run === run)
  if (found) return found.manifest
  const which =
    run === 'latest' ? `complete backup${before ? ` from before ${local(before)} (Budapest)` : ''}` : `backup ${run}`
  throw new Stop(`There is no ${which}.`, ['npx tsx scripts/restore.ts --list'], EXIT.usage)
}

/**
 * @param names undefined for all
 * @returns them in the order in which they were asked for, which is that of the name to type
 * @throws Stop (exit 2) when a name is not among the databases of the run
 */
export function pickDatabases(manifest: Manifest, names: string[] | undefined): DatabaseBackup[] {
  const known = manifest.databases.map(({ name }) => name)
  const unknown = names === undefined ? [] : names.filter((name) => !known.includes(name))
  if (unknown.length > 0)
    throw new Stop(
      `The run ${manifest.run} has no database ${unknown.join(', ')}. It has ${known.join(', ')}.`,
      ['npx tsx scripts/restore.ts --list'],
      EXIT.usage,
    )
  if (names === undefined) return manifest.databases
  return [...new Set(names)].flatMap((wanted) => manifest.databases.filter(({ name }) => name === wanted))
}

/** @throws Stop (exit 2) when the files are wanted and the run has none */
export function pickFiles(manifest: Manifest, wanted: boolean): Manifest['files'] | undefined {
  if (!wanted) return undefined
  if (manifest.files) return manifest.files
  throw new Stop(`The run ${manifest.run} has no files.`, ['npx tsx scripts/restore.ts --list'], EXIT.usage)
}

/** What is at hand for a restore, besides the server. */
export type Hand = {
  /** Public keys of the identities. */
  recipients: string[]
  /** Bytes free where downloads go. */
  localFree: number
  otherServer: boolean
  /** The files of the backup, when they are wanted too. */
  files: Manifest['files'] | undefined
}

/** @throws Stop that names everything that makes this restore impossible */
export function assertPossible(...args: Parameters<typeof obstacles>): void {
  const problems = obstacles(...args)
  if (problems.length > 0)
    throw new Stop(`${problems.join('\n')}\nNothing was touched.`, ['npx tsx scripts/restore.ts --list'])
}

/** Whether the server, or its whole cluster, is a new one since the backup: its roles are then restored, too. */
export const isElsewhere = (manifest: Manifest, found: DatabaseServer): boolean =>
  manifest.server.systemIdentifier !== found.system

/**
 * What makes a restore impossible, all of it at once; empty when nothing does.
 */
export function obstacles(
  manifest: Manifest,
  wanted: DatabaseBackup[],
  found: DatabaseServer,
  { recipients, localFree, otherServer, files }: Hand,
): string[] {
  const problems: string[] = []
  const major = (version: number) => Math.floor(version / 10_000)
  if (!manifest.recipients.some((recipient) => recipients.includes(recipient)))
    problems.push(
      `The identity in BACKUP_IDENTITY_FILE does not open this backup: it is ${recipients.join(', ')}, and the backup is for ${manifest.recipients.join(', ')}.`,
    )
  if (major(manifest.server.versionNum) > major(found.version))
    problems.push(
      `The backup is of PostgreSQL ${major(manifest.server.versionNum)}, and the server has ${major(found.version)}: an older one cannot read it.`,
    )
  if (isElsewhere(manifest, found) && !otherServer)
    problems.push(
      `The backup is of another server: ${manifest.host}, system ${manifest.server.systemIdentifier}; this one is ${found.system}. When that is meant: --other-server.`,
    )
  const missing = (needed: string[], there: string[]) => [...new Set(needed.filter((name) => !there.includes(name)))]
  const roles = missing(
    wanted.map(({ owner }) => owner),
    found.roles,
  )
  if (roles.length > 0 && !(isElsewhere(manifest, found) && manifest.globals))
    problems.push(`The server does not have these roles: ${roles.join(', ')}.`)
  const extensions = missing(
    wanted.flatMap((one) => Object.keys(one.extensions)),
    found.extensions,
  )
  if (extensions.length > 0) problems.push(`The server does not have these extensions: ${extensions.join(', ')}.`)
  const need = diskNeed(wanted) + (files?.bytes ?? 0)
  if (need > found.free)
    problems.push(
      `The server's disk has ${gigabytes(found.free)} free, and this needs ${gigabytes(need)}: the restored database stands beside the one that serves.`,
    )
  const download = sum(wanted.map(({ storedBytes }) => storedBytes))
  if (download > localFree)
    problems.push(
      `This machine has ${gigabytes(localFree)} free for downloads, and this needs ${gigabytes(download)} (TMPDIR).`,
    )
  return problems
}

/** Bytes that a restore takes on the server: all databases at once, and one unpacked dump at a time. */
export const diskNeed = (wanted: DatabaseBackup[]): number =>
  sum(wanted.map(({ size }) => size * ROOM)) + Math.max(0, ...wanted.map(({ rawBytes }) => rawBytes)) + SPARE

export type Counts = Record<string, number>

/** What of the tables that serve is not in the backup, as far as counts can say; the largest differences first. */
export function describeLoss(live: Counts | undefined, kept: Counts): string {
  if (live === undefined) return 'there is no such database now, so nothing'
  const differences = Object.entries(live)
    .map(([table, count]) => ({ table, more: count - (kept[table] ?? 0) }))
    .filter(({ more }) => more > 0)
    .sort((a, b) => b.more - a.more)
  const rows = sum(differences.map(({ more }) => more))
  if (rows === 0) return 'no table has more rows now than in the backup; rows that were changed cannot be counted'
  const named = differences.slice(0, 5).map(({ table, more }) => `${table} ${more}`)
  return `${rows} rows that were added (${named.join(', ')}${differences.length > 5 ? ', …' : ''}), and what was changed, which cannot be counted`
}

/** What a person must know before the names are swapped. */
export function describeChange(
  host: string,
  manifest: Manifest,
  wanted: DatabaseBackup[],
  losses: Record<string, string>,
  stamp: string,
  now: Date,
  files: Manifest['files'] | undefined,
): string {
  return [
    `On ${host}, from the backup ${manifest.run} of ${manifest.host}:`,
    ...wanted.map(
      ({ name, at }) =>
        `  ${name} goes back ${ago(now.getTime() - Date.parse(at))}, to ${at}. Lost from what serves: ${losses[name]}.\n  What serves now is kept as ${besideName(name, 'old', stamp)}; --undo brings it back.`,
    ),
    ...(files
      ? [
          `  ${files.files} files go back ${ago(now.getTime() - Date.parse(manifest.started))}. What is there now is kept as ${besideName(FILES, 'old', stamp)}; --undo brings it back.`,
        ]
      : []),
  ].join('\n')
}

/** 3 d 4 h 5 min */
export function ago(ms: number): string {
  const minutes = Math.max(0, Math.round(ms / 60_000))
  const parts = [
    [Math.floor(minutes / 1440), 'd'],
    [Math.floor(minutes / 60) % 24, 'h'],
    [minutes % 60, 'min'],
  ] as const
  return parts
    .filter(([count, unit]) => count > 0 || unit === 'min')
    .map(([count, unit]) => `${count} ${unit}`)
    .join(' ')
}

/** Differences between what was restored and what the backup recorded; empty when there are none. */
export const differingCounts = (restored: Counts, recorded: Counts): string[] =>
  [...new Set([...Object.keys(restored), ...Object.keys(recorded)])]
    .filter((table) => restored[table] !== recorded[table])
    .map((table) => `${table}: ${restored[table] ?? 'missing'} rows instead of ${recorded[table] ?? 'none'}`)

const sum = (numbers: number[]) => numbers.reduce((total, one) => total + one, 0)
