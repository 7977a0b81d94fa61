import type { Failure, Manifest, Proof } from './manifest.ts'

export type Keep = {
  /** Everything younger than this many days stays. */
  days: number
  /** The newest run of each of the last so many weeks and months stays, too. */
  weeks: number
  months: number
}
export type KnownRun = {
  manifest: Pick<Manifest, 'run' | 'started' | 'complete' | 'verified' | 'host'>
  /** When the store says that the manifest was written: a second clock beside the manifest's own. */
  stored: Date
  proof?: Pick<Proof, 'restored'>
  /** It did not come up in its restore test. */
  failure?: Pick<Failure, 'error'>
}

const DAY = 24 * 3600_000
/** Complete ones that stay whatever their age: a week of nights. */
const NEWEST = 7
/** A normal night removes one. What a changed setting would remove goes over many nights, in which somebody can see it. */
const MOST_AT_ONCE = 3

const startOf = ({ manifest }: KnownRun) => Date.parse(manifest.started)

/**
 * Which runs may go. Ordered by when they started, never by name.
 * @param now the time by the store's clock
 * @returns runs to remove, oldest first; how many more are left to later nights; why nothing is removed when nothing may be
 */
export function runsToRemove<R extends KnownRun>(
  runs: R[],
  keep: Keep,
  now: Date,
): { remove: R[]; later: number; refused?: string } {
  const sorted = [...runs].sort((a, b) => startOf(b) - startOf(a))
  const complete = sorted.filter(({ manifest, failure }) => manifest.complete && !failure)
  const newest = sorted[0]
  if (!newest?.manifest.complete || !newest.manifest.verified.read || newest.failure)
    return { remove: [], later: 0, refused: 'the newest backup is not complete and verified' }
  const kept = new Set<R>(complete.slice(0, NEWEST))
  const proven = complete.find(({ proof }) => proof)
  if (proven) kept.add(proven)
  for (const run of newestOfEach(complete, weekOf).slice(0, keep.weeks)) kept.add(run)
  for (const run of newestOfEach(complete, monthOf).slice(0, keep.months)) kept.add(run)
  const limit = now.getTime() - keep.days * DAY
  const remove = sorted
    .filter((run) => !kept.has(run) && startOf(run) < limit && run.stored.getTime() < limit)
    .reverse()
  return { remove: remove.slice(0, MOST_AT_ONCE), later: Math.max(0, remove.length - MOST_AT_ONCE) }
}

/** `runs` from new to old; of each group its newest. */
function newestOfEach<R extends KnownRun>(runs: R[], groupOf: (start: Date) => string): R[] {
  const groups = new Map<string, R>()
  for (const run of runs) {
    const group = groupOf(new Date(startOf(run)))
    if (!groups.has(group)) groups.set(group, run)
  }
  return [...groups.values()]
}

/** Weeks begin on Monday: 1970-01-05 was one. */
const weekOf = (date: Date) => String(Math.floor((date.getTime() - 4 * DAY) / (7 * DAY)))
const monthOf = (date: Date) => date.toISOString().slice(0, 7)

/** Deleted before, an object costs as much (docs.wasabi.com, "90-Day Storage Policy"). */
const WASABI_MINIMUM_DAYS = 90

/** @returns what removing after so many days does not save at this store; undefined where nothing is known of it */
export const minimumCharge = (endpoint: string, days: number): string | undefined =>
  /\.wasabisys\.com$/.test(new URL(endpoint).hostname) && days < WASABI_MINIMUM_DAYS
    ? `Wasabi charges every object for ${WASABI_MINIMUM_DAYS} days: keeping backups as long (BACKUP_KEEP_DAYS) costs nothing more`
    : undefined
