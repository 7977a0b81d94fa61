import { Stop } from '../errors.ts'
import type { ObjectStoreSettings } from '../settings.ts'
import { type Command, sh } from '../shell.ts'
import { resticPrefix } from './manifest.ts'
import { text } from './pipeline.ts'

export type Restic = { settings: ObjectStoreSettings; signal: AbortSignal }

/** All that is not about the files themselves. */
const SHORT_MINUTES = 15

export const resticRepository = ({ S3_ENDPOINT, S3_BUCKET, S3_PREFIX }: ObjectStoreSettings) =>
  `s3:${S3_ENDPOINT}/${S3_BUCKET}/${resticPrefix(S3_PREFIX)}`

/**
 * RESTIC_PASSWORD comes from the environment.
 * @param minutes after which it is ended: one that hangs must not cost the night's databases
 */
export async function restic(
  { settings, signal }: Restic,
  what: string,
  args: Command,
  minutes = SHORT_MINUTES,
): Promise<string> {
  const ca = settings.S3_CA_FILE ? ['--cacert', settings.S3_CA_FILE] : []
  const limit = AbortSignal.timeout(minutes * 60_000)
  try {
    return await text(
      sh`restic --quiet --cache-dir /var/lib/backup/restic-cache -o s3.bucket-lookup=path ${ca} ${args}`,
      {
        what,
        signal: AbortSignal.any([signal, limit]),
        env: {
          RESTIC_REPOSITORY: resticRepository(settings),
          AWS_ACCESS_KEY_ID: settings.S3_ACCESS_KEY_ID,
          AWS_SECRET_ACCESS_KEY: settings.S3_SECRET_ACCESS_KEY,
          AWS_DEFAULT_REGION: settings.S3_REGION,
        },
      },
    )
  } catch (error) {
    if (limit.aborted && !signal.aborted) throw new Stop(`${what} was ended: it took longer than ${minutes} minutes.`)
    throw error
  }
}

export type ResticLock = { time: string; hostname: string; pid: number }

/** restic renews the lock of a process that lives every five minutes, and takes one of this age for a dead one's. */
const STALE_MS = 30 * 60_000
/** Of a lock under our own name: an old server and the one rebuilt from its backup share it, so one that is renewed is not ours. */
const OWN_STALE_MS = 10 * 60_000

/** @param diedHere a run of this server ended without taking its locks away */
export const lockOfOther = (locks: ResticLock[], host: string, diedHere: boolean, now: Date): ResticLock | undefined =>
  locks.find(({ time, hostname }) => {
    const staleAfter = diedHere && hostname === host ? OWN_STALE_MS : STALE_MS
    return now.getTime() - Date.parse(time) < staleAfter
  })

/**
 * Removes the locks that dead processes left (restic's issue 3732). Not by restic's own rule: in a new container it would
 * find another program under the number of the dead one, and send it a signal.
 * @throws Stop when another server is at work in the repository
 */
export async function removeDeadLocks(on: Restic, host: string, diedHere: boolean): Promise<void> {
  const ids = await restic(on, 'Listing the locks of restic', sh`list locks --no-lock`)
  const locks: ResticLock[] = []
  for (const id of ids.split('\n').filter(Boolean)) {
    // It may have been renewed or taken away meanwhile.
    const lock = await restic(on, 'Reading a lock of restic', sh`cat lock ${id} --no-lock`).catch(() => undefined)
    if (lock) locks.push(JSON.parse(lock))
  }
  const other = lockOfOther(locks, host, diedHere, new Date())
  if (other)
    throw new Stop(
      `The restic repository is in use since ${other.time} by process ${other.pid} on ${other.hostname}.`,
      ['Does another server use this S3_PREFIX? Each needs its own.'],
    )
  // The key must be allowed to delete here, if nowhere else: restic tries for minutes to take its own locks away.
  if (locks.length > 0) await restic(on, 'Removing old locks of restic', sh`unlock --remove-all`)
}
