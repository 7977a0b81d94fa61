import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Actor } from '../actor.ts'
import { type Config, siteUrl } from '../config.ts'
import { BadRelease, EXIT, type ExitCode, isInterruption, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { withLock } from '../lock.ts'
import { type Log, seconds } from '../log.ts'
import { notify } from '../slack.ts'
import { checkoutUnlessThere } from './checkout.ts'
import { other, releaseName } from './color.ts'
import { cutOver, isSettled, retire, settle } from './cutover.ts'
import { describePlan } from './plan.ts'
import { appendRecord, type Images, type ReleaseRecord } from './release.ts'
import { imagesOnServer, imagesToRemove, removeImages } from './retention.ts'
import { describeServing, type Survey, survey } from './survey.ts'

export type Run = {
  log: Log
  server: Host
  config: Config<'front' | 'server' | 'release' | 'notify'>
  actor: Actor
  dryRun: boolean
  /** Seconds to wait for another run. */
  wait: number
  /** When the command was given, in milliseconds since 1970. */
  started: number
  /** What the server was like before the lock was taken: still right when no other run came between. */
  known: Survey
}

/** What a run does that is its own; the rest is the same for a deploy and a rollback. */
export type Change = {
  action: 'deploy' | 'rollback'
  version: string
  images: Images
  commit: string
  /** Lines of the success message, after its title. */
  details: string[]
  /** Everything before the new color starts. `note` adds to the record of this run. */
  prepare(host: Host, found: Survey, note: (line: Partial<ReleaseRecord>) => Promise<unknown>): Promise<void>
  /** What is worth telling once the release serves; it runs beside the draining. */
  lookBack?(host: Host): Promise<void>
}

type Serving = Pick<ReleaseRecord, 'version' | 'images'>

const SEE_RELEASES = ['What is known of the releases: npx tsx scripts/rollback.ts --list']

/** Characters: it may hold a container's log. */
const LONGEST_REASON = 2000
/** What an interrupted run waits for Slack. */
const LONGEST_FAREWELL_MS = 2000

/**
 * Changes which release serves, under the lock, with a record of it, and tells Slack.
 * @param choose what to change to, given what the server is like once the lock is held
 * @throws Stop that says what serves now
 */
export async function changeRelease(
  run: Run,
  action: string,
  choose: (found: Survey, host: Host) => Promise<Change>,
): Promise<ExitCode> {
  const { log, server, config, actor, dryRun, wait, started, known } = run
  const url = siteUrl(config.front)
  const tell = (text: string) => (dryRun ? Promise.resolve() : notify(log, config.notify.SLACK_WEBHOOK_URL, text))

  let begun = false
  const holder = { ...actor, action }
  return withLock(server, log, holder, { dryRun, wait }, async (host, sum = known.sum): Promise<ExitCode> => {
    begun = true
    const found = sum === known.sum && isSettled(known) ? known : await survey(server)
    const before = found.active
    const change = await choose(found, host)
    const { version, images, commit } = change
    const next = { color: before ? other(before.color) : 'blue', version } as const
    const id = randomUUID()
    const write = (line: Partial<ReleaseRecord>) => host.write(appendRecord({ id, ...line }))
    const title = `${change.action === 'deploy' ? 'Deploy' : 'Rollback to'} ${version}`

    log.say(`  ${describeServing(found)} ${version} goes to ${next.color}.`)
    if (dryRun) log.result(describePlan(found, version, images))
    const announced = tell(`${title} started by ${actor.who}: ${url}`)
    const recorded = write({
      ...{
        action: change.action,
        version,
        images,
        commit,
        actor: actor.who,
        at: new Date().toISOString(),
        outcome: 'started',
      },
      ...(before ? { from: before.version } : {}),
      ...(actor.runUrl ? { runUrl: actor.runUrl } : {}),
    })
    recorded.catch(() => {})
    let filesAreBack = found.commit === '' || found.commit === commit
    const putFilesBack = async () => {
      if (filesAreBack) return
      await log.step(
        `Files of ${found.commit.slice(0, 7)} again`,
        () => host.write(checkoutUnlessThere(found.commit)),
        'always',
      )
      filesAreBack = true
    }
    try {
      await change.prepare(host, found, write)
      await recorded
      if (!isSettled(found))
        await log.step('Idle color is idle', () => settle(host, found, config.release.DRAIN_TIMEOUT))
      await cutOver({ host, log, config, dryRun, next, images, before, putFilesBack })
    } catch (error) {
      await putFilesBack().catch((failure) => log.warn(messageOf(failure)))
      const now = await whatServes(server)
      // What serves was good enough to serve, whatever a second try of it says.
      const outcome = error instanceof BadRelease && version !== before?.version ? 'bad' : 'failed'
      const reason = log.clean(messageOf(error)).slice(0, LONGEST_REASON)
      // GitHub gives a cancelled run 10 s.
      if (isInterruption(error)) log.say(`  ${now}`)
      await write({ outcome, reason, timings: log.timings }).catch(() => log.warn('This run could not be recorded.'))
      const at = log.current ? ` at "${log.current}"` : ''
      const told = announced.then(() => tell(`❌ ${title} FAILED${at}. ${now} ${url}`))
      await (isInterruption(error) ? Promise.race([told, sleep(LONGEST_FAREWELL_MS)]) : told)
      throw error instanceof Stop ? error.withServing(now).orNext(SEE_RELEASES) : error
    }
    const took = (Date.now() - started) / 1000
    const good = { outcome: 'good', timings: log.timings, seconds: took } as const
    await write(good).catch(() => log.warn('This run could not be recorded.'))
    const lookingBack = change.lookBack?.(host).catch((error) => log.warn(messageOf(error)))
    const leftover = await cleanUp(run, host, found, { version, images })
    await lookingBack
    // All of it again: the disk may have been full the first time.
    await write({ ...good, timings: log.timings }).catch((error) => log.warn(messageOf(error)))
    if (dryRun) {
      log.say('Dry run: nothing was changed.')
      return EXIT.done
    }
    await announced
    await tell([`✅ ${title} SUCCESS`, ...change.details, `Duration: ${seconds(took)}`, `URL: ${url}`].join('\n• '))
    log.result(`✅ ${title} SUCCESS in ${seconds(took)}: ${url} is served by ${next.color}.`)
    if (leftover) log.warn(`Cleaning up was cut short; the next run does it. ${leftover.message}`)
    if (before && before.version !== version)
      log.say(`Back to ${before.version}: npx tsx scripts/rollback.ts --to ${before.version}`)
    return leftover?.code === EXIT.interrupted ? EXIT.interrupted : EXIT.done
  }).catch(async (error) => {
    if (begun || !(error instanceof Stop)) throw error
    throw error.withServing(`Nothing was touched. ${await whatServes(server)}`)
  })
}

const whatServes = (server: Host): Promise<string> =>
  survey(server).then(describeServing, (error) =>
    error instanceof Stop && error.code === EXIT.needsHuman
      ? messageOf(error)
      : 'The server does not answer, so what serves now is not known.',
  )

/**
 * Stops the old color and removes old images. By now the release serves and passed its tests, so what goes wrong here is
 * no failure of it: the next run begins by making good for it.
 */
async function cleanUp(run: Run, host: Host, found: Survey, now: Serving): Promise<Stop | undefined> {
  const { log, config } = run
  const before = found.active
  try {
    if (before)
      await log.step(`Drain and stop ${releaseName(before)}`, () => retire({ host, log, config }, before.color))
    await log.step('Remove old images', () => prune(run, host, found, now))
  } catch (error) {
    return error instanceof Stop ? error : new Stop(messageOf(error))
  }
  return undefined
}

/** Only after a success, and only images that neither color nor a kept release needs. */
async function prune({ config, log }: Run, host: Host, found: Survey, now: Serving): Promise<void> {
  const inUse = [...Object.values(now.images), ...(found.active ? found.colorImages[found.active.color] : [])]
  const records = [...found.records, { ...now, outcome: 'good' } as ReleaseRecord]
  const old = imagesToRemove(await imagesOnServer(host, records), records, config.release.KEEP_RELEASES, inUse)
  if (old.length === 0) return
  log.say(`  ${old.length} images of releases beyond the last ${config.release.KEEP_RELEASES}`)
  await host.write(removeImages(old))
}
