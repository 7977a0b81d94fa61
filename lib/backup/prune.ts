import { messageOf } from '../errors.ts'
import { type CatalogRun, readCatalog } from './catalog.ts'
import { forgetFiles, listSnapshots, orphansAmong } from './files.ts'
import { MANIFEST, runKey, runsPrefix } from './manifest.ts'
import type { ObjectStore } from './object-store.ts'
import { minimumCharge, runsToRemove } from './retention.ts'
import type { Service } from './service.ts'
import { nowAt } from './sweep.ts'

/**
 * Removes what retention lets go, the manifest of each run first: a removal that is cut off leaves garbage, never a backup
 * that looks whole. Lists it first; with `dryRun` that is all.
 * @returns false when the key may not delete
 */
export async function prune(service: Service, dryRun: boolean, weekly: boolean): Promise<boolean> {
  const { log, config, store, signal } = service
  const { BACKUP_KEEP_DAYS: days, BACKUP_KEEP_WEEKS: weeks, BACKUP_KEEP_MONTHS: months } = config.backup
  const { runs } = await readCatalog(store, { anyFailure: true })
  const now = await nowAt(store)
  const { remove, later, refused } = runsToRemove(runs, { days, weeks, months }, now)
  if (refused) log.say(`  nothing is removed: ${refused}`)
  for (const { manifest } of remove) log.say(`  ${dryRun ? 'would go' : 'goes'}: ${manifest.run}`)
  if (later > 0) log.say(`  ${later} more are left to the next nights`)
  const charged = minimumCharge(store.settings.S3_ENDPOINT, days)
  if (charged && remove.length > 0) log.say(`  ${charged}`)
  if (dryRun) return true
  const gone: CatalogRun[] = []
  let denied = false
  for (const run of remove) {
    const prefix = `${runsPrefix(store.settings.S3_PREFIX)}${run.manifest.run}/`
    denied = !(await store.remove(prefix, runKey(store.settings.S3_PREFIX, run.manifest.run, MANIFEST), signal))
    if (denied) break
    gone.push(run)
  }
  const forgotten = await forgetGone(service, gone, weekly, now)
  if (denied || !forgotten)
    log.warn('Old backups could not be removed: the key may not delete, or a lock still holds. Nothing else is wrong.')
  return !denied && forgotten
}

/**
 * The files of what was just removed, and of runs that are gone since before: a run that is killed leaves its snapshot.
 * @returns false when restic could not
 */
async function forgetGone({ log, store, signal }: Service, gone: CatalogRun[], weekly: boolean, now: Date) {
  const on = { settings: store.settings, signal }
  try {
    const orphans = orphansAmong(await listSnapshots(on), await storedRuns(store), now)
    const snapshots = [...gone.flatMap(({ manifest }) => manifest.files?.snapshot ?? []), ...orphans]
    if (snapshots.length > 0) await forgetFiles(on, [...new Set(snapshots)], weekly)
    return true
  } catch (error) {
    if (signal.aborted) throw error
    log.warn(messageOf(error))
    return false
  }
}

/** All of which anything is stored, with or without a manifest. */
async function storedRuns(store: ObjectStore): Promise<string[]> {
  const { runs, leftovers, unreadable } = await readCatalog(store, { anyFailure: true })
  return [...runs.map(({ manifest }) => manifest.run), ...[...leftovers, ...unreadable].map(({ run }) => run)]
}
