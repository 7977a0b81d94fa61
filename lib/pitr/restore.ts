import type { Actor } from '../actor.ts'
import { gigabytes } from '../backup/catalog.ts'
import { EXIT, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { withLock } from '../lock.ts'
import type { Log } from '../log.ts'
import { local, type When } from '../when.ts'
import {
  type Backup,
  chooseBackup,
  download,
  forgetFork,
  forkOld,
  newVolume,
  parseBackups,
  removeLeftovers,
  SIDE,
  startSide,
  stopSide,
} from './cluster.ts'
import { compareClusters, type Found, flushLog, surveyPitr, waitForSide } from './server.ts'
import { PUT_BACK, SWAP_LOG, swapTo } from './swap.ts'

export type PitrRun = {
  log: Log
  server: Host
  actor: Actor
  dryRun: boolean
  /** Seconds to wait for another run. */
  wait: number
  /** Asks for what cannot be taken back by answering again; throws when the answer is no. */
  approve(question: string): Promise<void>
}

/** Downloading and replaying 100 GB takes under an hour (backup.md: 390 MB/s on local disk); the lock holds for two. */
const LONGEST_SECONDS = 6000
const SWAP_SECONDS = 1200

/**
 * Puts the whole cluster back to a moment. It is restored beside the one that serves, which is not touched until the
 * restored one has proved to start, has been compared with it, and was approved.
 * @throws Stop that says what serves now
 */
export async function restoreToTime(run: PitrRun, when: When): Promise<void> {
  const work = async (host: Host, found: Found) => {
    const volume = await bringBack(run, host, found, when)
    const differences = run.dryRun || found.live !== 'ours' ? undefined : await compare(run, host)
    await replace(run, host, volume, describe(when), differences, found)
  }
  await besideLive(run, `restore to ${describe(when)}`, work, { needsLog: true })
}

/**
 * Lets the cluster serve again that the last restore to a time replaced. It is on the server: the log in S3 is wanted only to
 * try it beside what serves, and to give its log a line of its own there.
 */
export async function undoRestore(run: PitrRun): Promise<void> {
  await besideLive(run, 'undo of a restore', async (host, found) => {
    const last = found.replacements.at(-1)
    if (!last) throw new Stop('No restore to a time was ever done here: there is nothing to undo.')
    if (!found.volumes.includes(last.was))
      throw new Stop(`The cluster that served before ${last.at} is gone: there is no volume ${last.was}.`)
    run.log.say(`  ${last.was}, which served until ${local(new Date(last.at))}.`)
    const obstacle = notReady(found)
    if (obstacle) {
      run.log.warn(`${obstacle.message} It is not tried beside what serves.`)
      await host.write(forgetFork(last.was), { timeout: 60 }).catch((error) => run.log.warn(messageOf(error)))
    } else {
      await run.log.step('A line of its own', () => host.write(forkOld(last.was), { timeout: 60 }))
      await replay(run, host, last.was)
    }
    const differences = obstacle || run.dryRun || found.live === 'down' ? undefined : await compare(run, host)
    await replace(run, host, last.was, `undo of ${last.target}`, differences, found)
  })
}

/** Restores to a moment into the second cluster and leaves it running, to copy from: one table, or one database. */
export async function restoreBesideOnly(run: PitrRun, when: When): Promise<void> {
  await besideLive(
    run,
    `look at ${describe(when)}`,
    async (host, found) => {
      await bringBack(run, host, found, when)
      run.log.result(`The cluster as of ${describe(when)} runs in ${SIDE}. The next run with --time removes it.`)
    },
    { needsLog: true, after: 'keep' },
  )
}

/** Starts the second cluster as of a moment. @returns its volume */
async function bringBack(run: PitrRun, host: Host, found: Found, when: When): Promise<string> {
  const { log } = run
  if (found.live === 'ours') await log.step('The log up to now into S3', () => flushLog(host))
  const backup = chooseBackup(parseBackups(found.info), when)
  assertRoom(backup, found)
  log.say(`  ${describe(when)}: from the ${backup.type} backup of ${local(backup.stop)}, ${gigabytes(backup.bytes)}.`)
  const volume = newVolume(new Date())
  await log.step('Download', () => host.write(download(volume, backup, when), { timeout: LONGEST_SECONDS }))
  const newest = await replay(run, host, volume)
  if (newest) log.say(`  Its newest transaction is of ${local(newest)}.`)
  return volume
}

/** What every run has around it: the lock, what a dead run left, and the second cluster taken away when it did not come to serve. */
async function besideLive(
  { log, server, actor, dryRun, wait }: PitrRun,
  action: string,
  work: (host: Host, found: Found) => Promise<void>,
  { needsLog = false, after = 'remove' }: { needsLog?: boolean; after?: 'remove' | 'keep' } = {},
): Promise<void> {
  await withLock(server, log, { ...actor, action }, { dryRun, wait }, async (host) => {
    const found = await log.step('Survey', () => surveyPitr(server))
    if (found.swap) {
      await log.step('Complete what was cut off', () => host.write(swapTo(found.swap, ''), { timeout: SWAP_SECONDS }))
      throw new Stop(`A restore that was cut off is complete now: ${found.swap} serves. Yours was not begun.`, [
        'If you still want it, run it again.',
      ])
    }
    const serves = `${found.volume} serves, as before.`
    const obstacle = needsLog ? notReady(found) : undefined
    // Before anything goes: a cluster that --keep-side left may be all that there is of that moment.
    if (obstacle) throw obstacle.withServing(serves)
    await host.write(removeLeftovers(found.leftovers))
    try {
      await work(host, found)
    } catch (error) {
      const { volume, leftovers } = await surveyPitr(server).catch(() => ({ ...found, leftovers: [] }))
      if (!dryRun && after === 'remove')
        await host.write(removeLeftovers(leftovers)).catch((failure) => log.warn(messageOf(failure)))
      throw explain(error, volume === found.volume ? serves : `${volume} serves.`)
    }
  })
}

/** Why the log in S3 cannot be had; undefined when it can. */
function notReady({ on, keeper, info }: Found): Stop | undefined {
  if (!on)
    return new Stop("Point in time recovery is off: PITR=on is not in the server's .env.", [
      'The nightly backups can be restored: npx tsx scripts/restore.ts --all --before WHEN',
    ])
  if (!keeper || !info)
    return new Stop(`kgc-pitr-1 ${keeper ? 'does not reach S3' : 'does not run'}.`, [
      keeper
        ? 'docker logs --tail 20 kgc-pitr-1'
        : 'Deploy the serving release: it starts everything that does not run.',
    ])
  return undefined
}

function assertRoom({ bytes }: Backup, { freeBytes }: Found): void {
  const needed = bytes * 1.1
  if (needed > freeBytes)
    throw new Stop(`It needs ${gigabytes(needed)} beside what is there, and ${gigabytes(freeBytes)} are free.`, [
      'Clusters of earlier restores, which --drop removes: npx tsx scripts/restore.ts --status',
    ])
}

/** @returns when its newest transaction was */
async function replay({ log, dryRun }: PitrRun, host: Host, volume: string): Promise<Date | undefined> {
  const epoch = await log.step('Replay the log', async () => {
    await host.write(startSide(volume), { timeout: 120 })
    return host.write(waitForSide, { timeout: LONGEST_SECONDS })
  })
  return dryRun || !epoch ? undefined : new Date(Number(epoch) * 1000)
}

const compare = ({ log }: PitrRun, host: Host) =>
  log.step('Compare with what serves', () => compareClusters(host, LONGEST_SECONDS))

async function replace(
  { log, approve, dryRun }: PitrRun,
  host: Host,
  volume: string,
  target: string,
  differences: string[] | undefined,
  found: Found,
): Promise<void> {
  for (const line of differences ?? []) log.result(line)
  const compared = !differences
    ? 'It was not compared with what serves.'
    : differences.length === 0
      ? 'No table has another number of rows.'
      : `${differences.length} differences are listed above.`
  if (!dryRun)
    await approve(
      `The cluster of ${host.name} is replaced (${target}). ${compared} What was written after that moment is not in it; ${found.volume} keeps it.`,
    )
  await log.step('Stop the second cluster', () => host.write(stopSide, { timeout: 150 }))
  const said = await log.step(
    'Swap',
    () =>
      host.write(swapTo(volume, target), { timeout: SWAP_SECONDS }).catch((error) => {
        throw swapFailed(error, found)
      }),
    'whole',
  )
  if (dryRun) return log.say('Dry run: nothing was changed.')
  log.result(`✅ ${volume} serves (${target}); ${said.split('\n').at(-1)}.`)
}

function swapFailed(error: unknown, { volume }: Found): Stop {
  const putBack = /exit code (\d+)/.exec(messageOf(error))?.[1] === String(PUT_BACK)
  return putBack
    ? new Stop(
        `The restored cluster did not start, and ${volume} serves again.\n${messageOf(error)}`,
        [],
        EXIT.rolledBack,
      )
    : new Stop(
        `The swap did not end well: ${messageOf(error)}`,
        [`Run the same command again: it completes the swap. Its log is /opt/kgc/${SWAP_LOG}.`],
        EXIT.needsHuman,
      )
}

function explain(error: unknown, serving: string): unknown {
  if (/recovery ended before configured recovery target/.test(messageOf(error)))
    return new Stop(`The log in S3 ends before that moment.\n${serving}`, ['As far as it goes: --time newest'])
  return error instanceof Stop ? error.withServing(serving) : new Stop(`${messageOf(error)}\n${serving}`)
}

export const describe = (when: When) => (when === 'newest' ? 'the newest data' : `${local(when)} (Budapest)`)
