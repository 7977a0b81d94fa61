import type { Readable } from 'node:stream'
import type { DatabaseBackup } from '../backup/manifest.ts'
import { describeProgress, trackProgress } from '../backup/progress.ts'
import { Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import type { Log } from '../log.ts'
import { type Counts, describeLoss, differingCounts } from './plan.ts'
import { analyze, type DatabaseServer, fill, psql, spool } from './server.ts'
import { COUNT_ROWS, copyProperties, createBeside, giveProperties } from './sql.ts'

/** pg_restore with more workers than this hardly gains: few tables are large. */
const MOST_JOBS = 4

/**
 * Restores one database beside the one that serves, and proves it: the hash of the whole dump, every error of
 * pg_restore, and the number of rows of every table.
 * @param side what it is called until it is swapped
 * @param dump opens the compressed dump
 * @throws Stop when it is not what was backed up; the one that serves was not touched
 */
export async function restoreBeside(
  { host, log, found, dryRun }: { host: Host; log: Log; found: DatabaseServer; dryRun: boolean },
  record: DatabaseBackup,
  side: string,
  dump: () => Promise<Readable>,
): Promise<void> {
  const jobs = Math.min(MOST_JOBS, found.cores)
  await log.step(`Send ${record.name} and unpack it`, async () => {
    const follow = trackProgress({ [record.name]: record.storedBytes }, (at) => log.progress(describeProgress(at)))
    const got = await spool(host, record.name, await dump(), (bytes) => follow(record.name, bytes))
    if (!dryRun && (got.sha256 !== record.rawSha256 || got.bytes !== record.rawBytes))
      throw new Stop(
        `The unpacked dump of ${record.name} is not what was backed up: ${got.bytes} bytes with SHA-256 ${got.sha256} instead of ${record.rawBytes} with ${record.rawSha256}.`,
      )
  })
  await log.step(`Restore ${record.name} as ${side}`, async () => {
    await host.write(psql(createBeside(side, record, 'being restored')))
    await fill(host, side, record.name, jobs)
  })
  await log.step(`Count the rows of ${side}`, async () => {
    if (dryRun) return
    const differing = differingCounts(await countRows(host, side), record.rows)
    if (differing.length > 0)
      throw new Stop(`${side} is not what was backed up:\n${differing.map((line) => `  ${line}`).join('\n')}`)
  })
  await log.step(`Statistics, owner, grants and settings of ${side}`, async () => {
    await host.write(analyze(side, jobs), { timeout: 3600 })
    const serves = found.databases.some(({ name }) => name === record.name)
    await host.write(psql(serves ? copyProperties(record.name, side) : giveProperties(record, side)))
  })
}

/** What would be lost with each of the databases that serve now, in words. */
export async function countLosses(host: Host, found: DatabaseServer, wanted: DatabaseBackup[]) {
  const serves = (name: string) => found.databases.some((one) => one.name === name)
  const losses: Record<string, string> = {}
  for (const { name, rows } of wanted)
    losses[name] = describeLoss(serves(name) ? await countRows(host, name) : undefined, rows)
  return losses
}

/** The exact number of rows of every table of a database. */
export const countRows = async (host: Host, database: string): Promise<Counts> =>
  JSON.parse(await host.read(psql(COUNT_ROWS, database), { timeout: 3600 }))
