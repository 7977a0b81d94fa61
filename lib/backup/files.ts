import { type Command, script, sh } from '../shell.ts'
import { type Files, parseFiles, resticPrefix } from './manifest.ts'
import { text } from './pipeline.ts'
import { type Restic, removeDeadLocks, restic } from './restic.ts'

/** The volumes of uploads and of every vendor application, as they are mounted in the container. */
export const FILE_PATHS = ['uploads', 'twenty-files', 'chatwoot-files', 'horilla-files'].map((name) => `/data/${name}`)
/** A thirtieth of all stored data is read back and checked each night: everything in a month. */
const SUBSETS = 30
const DAY = 24 * 3600_000
/** Within the four hours of a whole backup. 50 GB at 100 Mbit/s are 67 minutes; what was sent is not sent again. */
const BACKUP_MINUTES = 120
const CHECK_MINUTES = 45

/** Another thirtieth each day: restic takes the first number for which one it is. */
export const subsetOf = (day: Date): string => `${(Math.floor(day.getTime() / DAY) % SUBSETS) + 1}/${SUBSETS}`

/**
 * Adds what is new in the volumes to the restic repository. It runs after the databases' snapshots, so every file that a
 * row names is there, unless it was deleted in between.
 * @param diedHere a run of this server ended otherwise than well
 */
export async function backUpFiles(on: Restic, run: string, host: string, diedHere: boolean): Promise<Files> {
  const there = await restic(on, 'Looking for the restic repository', sh`cat config --no-lock`).catch(() => undefined)
  if (there === undefined) await restic(on, 'Making the restic repository', sh`init`)
  await removeDeadLocks(on, host, diedHere)
  const each = await bytesOfEach(on.signal)
  const printed = await restic(
    on,
    'Backing up the files',
    sh`backup --json --exclude ${'.files_*'} --host ${host} --tag ${tagOf(run)} ${FILE_PATHS}`,
    BACKUP_MINUTES,
  )
  const summary = JSON.parse(printed.split('\n').pop() ?? '{}') as Record<string, number | string>
  return parseFiles({
    repository: resticPrefix(on.settings.S3_PREFIX),
    snapshot: String(summary.snapshot_id),
    paths: FILE_PATHS,
    files: Number(summary.total_files_processed),
    bytes: Number(summary.total_bytes_processed),
    each,
  })
}

/** restic knows only the sum, in which a volume that was emptied may not show. A file that goes away meanwhile is no failure. */
const SUM_BYTES: Command = script(
  `for path in ${FILE_PATHS.join(' ')}; do
  { find "$path" -name '.files_*' -prune -o -type f -printf '%s\\n' || true; } | awk -v path="$path" '{ sum += $1 } END { printf "%s %.0f\\n", path, sum }'
done`,
)

async function bytesOfEach(signal: AbortSignal): Promise<Record<string, number>> {
  const lines = await text(SUM_BYTES, { what: 'Adding up the files', signal })
  return Object.fromEntries(
    lines.split('\n').map((line) => {
      const [path = '', bytes] = line.split(' ')
      return [path.split('/').pop() ?? '', Number(bytes)]
    }),
  )
}

/** The repository's structure, and a thirtieth of its data, read and hashed. */
export const checkFiles = (on: Restic) =>
  restic(on, 'Checking the restic repository', sh`check ${`--read-data-subset=${subsetOf(new Date())}`}`, CHECK_MINUTES)

/** @param prune also give back the room, which rewrites data: once a week is enough */
export const forgetFiles = (on: Restic, snapshots: string[], prune: boolean) =>
  restic(
    on,
    'Forgetting old snapshots of the files',
    sh`forget ${prune ? ['--prune'] : []} ${snapshots}`,
    CHECK_MINUTES,
  )

const tagOf = (run: string) => `run=${run}`
export type FilesSnapshot = { id: string; time: string; tags?: string[] }
/** A run that works may not be in the store yet; and a listing that is wrong must not cost much. */
const ORPHAN_AFTER = 2 * DAY
const MOST_ORPHANS = 3

/** Snapshots of runs that are gone: of which nothing is stored any more, whether they were killed or removed. */
export const orphansAmong = (snapshots: FilesSnapshot[], runs: string[], now: Date): string[] =>
  snapshots
    .filter(({ time, tags = [] }) => {
      const own = tags.filter((tag) => tag.startsWith(tagOf('')))
      const isOld = now.getTime() - Date.parse(time) > ORPHAN_AFTER
      return isOld && own.length > 0 && !own.some((tag) => runs.includes(tag.slice(tagOf('').length)))
    })
    .map(({ id }) => id)
    .slice(0, MOST_ORPHANS)

export const listSnapshots = async (on: Restic): Promise<FilesSnapshot[]> =>
  JSON.parse(await restic(on, 'Listing the snapshots of the files', sh`snapshots --json --no-lock`)) ?? []
