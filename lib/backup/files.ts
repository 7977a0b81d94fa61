import type { ObjectStoreSettings } from '../settings.ts'
import { type Command, sh } from '../shell.ts'
import { type Manifest, resticPrefix } from './manifest.ts'
import { text } from './pipeline.ts'

/** The volumes of uploads and of every vendor application, as they are mounted in the container. */
export const FILE_PATHS = ['uploads', 'twenty-files', 'chatwoot-files', 'horilla-files'].map((name) => `/data/${name}`)
/** A thirtieth of all stored data is read back and checked each night: everything in a month. */
const READ_SUBSET = '1/30'

type Restic = { settings: ObjectStoreSettings; signal: AbortSignal }

export const resticRepository = ({ S3_ENDPOINT, S3_BUCKET, S3_PREFIX }: ObjectStoreSettings) =>
  `s3:${S3_ENDPOINT}/${S3_BUCKET}/${resticPrefix(S3_PREFIX)}`

/** RESTIC_PASSWORD comes from the environment. */
async function restic({ settings, signal }: Restic, what: string, args: Command): Promise<string> {
  const ca = settings.S3_CA_FILE ? ['--cacert', settings.S3_CA_FILE] : []
  return text(sh`restic --quiet --cache-dir /var/lib/backup/restic-cache -o s3.bucket-lookup=path ${ca} ${args}`, {
    what,
    signal,
    env: {
      RESTIC_REPOSITORY: resticRepository(settings),
      AWS_ACCESS_KEY_ID: settings.S3_ACCESS_KEY_ID,
      AWS_SECRET_ACCESS_KEY: settings.S3_SECRET_ACCESS_KEY,
      AWS_DEFAULT_REGION: settings.S3_REGION,
    },
  })
}

/**
 * Adds what is new in the volumes to the restic repository. It runs after the databases' snapshots, so every file that a
 * row names is there, unless it was deleted in between.
 */
export async function backUpFiles(on: Restic, run: string, host: string): Promise<Manifest['files']> {
  const there = await restic(on, 'Looking for the restic repository', sh`cat config --no-lock`).catch(() => undefined)
  if (there === undefined) await restic(on, 'Making the restic repository', sh`init`)
  // This run holds the lock of all backups, so what is locked here is what a killed run left (restic's issue 3732). The key
  // must be allowed to delete here, if nowhere else: restic tries for minutes to take its own locks away.
  await restic(on, 'Removing old locks of restic', sh`unlock --remove-all`)
  const printed = await restic(
    on,
    'Backing up the files',
    sh`backup --json --exclude ${'.files_*'} --host ${host} --tag ${`run=${run}`} ${FILE_PATHS}`,
  )
  const summary = JSON.parse(printed.split('\n').pop() ?? '{}') as Record<string, number | string>
  return {
    repository: resticPrefix(on.settings.S3_PREFIX),
    snapshot: String(summary.snapshot_id),
    paths: FILE_PATHS,
    files: Number(summary.total_files_processed),
    bytes: Number(summary.total_bytes_processed),
  }
}

/** The repository's structure, and a thirtieth of its data, read and hashed. */
export const checkFiles = (on: Restic) =>
  restic(on, 'Checking the restic repository', sh`check --read-data-subset=${READ_SUBSET}`)

/** @param prune also give back the room, which rewrites data: once a week is enough */
export const forgetFiles = (on: Restic, snapshots: string[], prune: boolean) =>
  restic(on, 'Forgetting old snapshots of the files', sh`forget ${prune ? ['--prune'] : []} ${snapshots}`)
