import { type CatalogRun, readCatalog } from './catalog.ts'
import { forgetFiles } from './files.ts'
import { MANIFEST, runKey, runsPrefix } from './manifest.ts'
import { minimumCharge, runsToRemove } from './retention.ts'
import type { Service } from './service.ts'
import { nowAt } from './sweep.ts'

/**
 * Removes what retention lets go, the manifest of each run first: a removal that is cut off leaves garbage, never a backup
 * that looks whole. Lists it first; with `dryRun` that is all.
 * @returns false when the key may not delete
 */
export async function prune(
  { log, config, store, signal }: Service,
  dryRun: boolean,
  weekly: boolean,
): Promise<boolean> {
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
  for (const run of remove) {
    const prefix = `${runsPrefix(store.settings.S3_PREFIX)}${run.manifest.run}/`
    if (!(await store.remove(prefix, runKey(store.settings.S3_PREFIX, run.manifest.run, MANIFEST), signal))) {
      log.warn(
        'Old backups could not be removed: the key may not delete, or a lock still holds. Nothing else is wrong.',
      )
      return false
    }
    gone.push(run)
  }
  const snapshots = gone.flatMap(({ manifest }) => (manifest.files ? [manifest.files.snapshot] : []))
  if (snapshots.length > 0) await forgetFiles({ settings: store.settings, signal }, snapshots, weekly)
  return true
}
