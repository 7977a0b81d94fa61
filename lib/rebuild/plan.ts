import { gigabytes } from '../backup/catalog.ts'
import type { Manifest, Stored } from '../backup/manifest.ts'
import { EXIT, Stop } from '../errors.ts'
import { ago, diskNeed } from '../restore/plan.ts'
import { singlesOf } from '../restore/single.ts'

/** What is fetched from the object store to this machine, in the order in which it is restored. */
export type Part = Stored & { name: string }

/**
 * The files go from the object store to the server itself.
 * @param fromLog without roles and databases: these come from the log of point in time recovery
 */
export function partsOf(manifest: Manifest, fromLog = false): Part[] {
  const { globals, databases } = manifest
  const dumps = fromLog ? [] : [...(globals ? [{ ...globals, name: 'roles' }] : []), ...databases]
  return [...dumps, ...singlesOf(manifest)]
}

export type Hand = {
  /** Public keys of the identities. */
  recipients: string[]
  /** Bytes free where downloads go, and on the server; undefined when that does not count. */
  localFree: number
  serverFree: number | undefined
}

/**
 * @returns the part that has the secrets
 * @throws Stop that names everything that makes this rebuild impossible; nothing was touched
 */
export function assertRebuildable(manifest: Manifest, { recipients, localFree, serverFree }: Hand): Stored {
  const problems: string[] = []
  if (!manifest.secrets)
    problems.push("It has no secrets: without the server's .env the rest cannot be read by the applications.")
  if (!manifest.recipients.some((recipient) => recipients.includes(recipient)))
    problems.push(
      `The identity in BACKUP_IDENTITY_FILE does not open it: it is ${recipients.join(', ')}, and the backup is for ${manifest.recipients.join(', ')}.`,
    )
  const download = partsOf(manifest).reduce((sum, { storedBytes }) => sum + storedBytes, 0)
  if (download > localFree)
    problems.push(
      `This machine has ${gigabytes(localFree)} free for downloads, and this needs ${gigabytes(download)} (TMPDIR).`,
    )
  const need = diskNeed(manifest.databases) + (manifest.files?.bytes ?? 0)
  if (serverFree !== undefined && need > serverFree)
    problems.push(`The server's disk has ${gigabytes(serverFree)} free, and this needs ${gigabytes(need)}.`)
  if (!manifest.secrets || problems.length > 0)
    throw new Stop(
      `No server can be rebuilt from ${manifest.run}:\n${problems.join('\n')}\nNothing was touched.`,
      ['Another backup, with --run: npx tsx scripts/restore.ts --list'],
      EXIT.failed,
    )
  return manifest.secrets
}

/** What a person must know before it begins. */
export function describeRebuild(
  server: string,
  manifest: Manifest,
  version: string,
  { done, fromLog, leftOut }: { done: string[]; fromLog: boolean; leftOut: string[] },
  now: Date,
): string {
  const { run, host, started, files, databases, failed } = manifest
  const names = [...databases.map(({ name, size }) => `${name} (${gigabytes(size)})`)]
  return [
    `${server} becomes ${host} as it was ${ago(now.getTime() - Date.parse(started))} ago, from the backup ${run}.`,
    `  databases: ${names.join(', ')}${files ? `; ${files.files} files, ${gigabytes(files.bytes)}` : ''}; release ${version}.`,
    ...failed.map(({ part }) => `  The backup is without ${part}.`),
    ...(fromLog
      ? ['  The databases come from the log in S3: as they were at most a minute before the server was lost.']
      : leftOut.includes('PITR')
        ? ['  PITR will be off: its log in S3 is that of the old cluster. RUNBOOK.md, "Onto a blank server".']
        : []),
    ...(leftOut.length > 0 ? [`  Not taken over from its .env: ${leftOut.join(', ')}.`] : []),
    '  Not in a backup: what was written since, sessions, and what Prometheus measured. Jobs that were done since run again.',
    ...(done.length > 0 ? [`  Done already: ${done.join(', ')}.`] : []),
  ].join('\n')
}
