import { startColor } from '../compose.ts'
import type { Config } from '../config.ts'
import { BadRelease, EXIT, isInterruption, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { colorEnv, ROOT } from '../layout.ts'
import { type Log, seconds } from '../log.ts'
import { type Command, chain, sh } from '../shell.ts'
import { databaseChecks, httpChecks } from '../smoke/checks.ts'
import { type CheckResult, countsAgainst, describeCheck, runChecks } from '../smoke/smoke.ts'
import { type Active, type Color, releaseName, renderColorEnv, servicesOf } from './color.ts'
import { healthGate } from './gate.ts'
import type { Images } from './release.ts'
import type { Survey } from './survey.ts'
import { drainCommand, NotSwitched, nameActive, switchTo } from './switch.ts'

export type CutOver = {
  host: Host
  log: Log
  config: Config<'front' | 'release'>
  dryRun: boolean
  next: Active
  images: Images
  /** What serves now; undefined before the first deploy. */
  before: Active | undefined
  /** Puts the files back that served before this run. */
  putFilesBack(): Promise<void>
}

/**
 * From an idle color to all traffic on it: start, health gate, switch, smoke tests. Whatever fails before the switch
 * leaves the old release untouched; whatever fails after it, an interruption too, is switched back at once.
 * @throws Stop with exit code 1 (never switched), 4 (switched and back), 130 (interrupted, switched back if need be) or
 * 5 (the server could not be reached to switch back)
 */
export async function cutOver(run: CutOver): Promise<void> {
  const { host, log, next } = run
  let surroundings: CheckResult[] = []
  let switching = false
  let servesSince: number | undefined
  try {
    await log.step(
      `Start ${next.version} as ${next.color}`,
      () => host.write(startCommand(next, run.images), { timeout: 180 }),
      'whole',
    )
    await log.step('Health gate', async () => {
      const [healthy, results] = await Promise.allSettled([gate(run), checkSurroundings(run)])
      if (healthy.status === 'rejected') throw healthy.reason
      surroundings = results.status === 'fulfilled' ? results.value : []
    })
    switching = true
    // Never left in the middle: two switches at once could undo each other.
    await log.step(`Switch to ${releaseName(next)}`, () => switchTo(host, next), 'whole')
    servesSince = performance.now()
  } catch (error) {
    // Whether a connection that broke in the switch left it done or not cannot be known: switching back is right for both.
    if (switching && !(error instanceof NotSwitched) && !isInterruption(error)) throw await switchBack(run, error)
    await stopAgain(run, error)
    throw error
  }
  try {
    await log.step('Smoke tests', () => smoke(run, surroundings))
  } catch (error) {
    throw await switchBack(run, error, servesSince)
  }
}

/**
 * @param servesSince milliseconds of `performance.now()` when the new release was seen to serve, if it was
 * @returns the error to throw: what went wrong, and that it was undone
 */
async function switchBack(run: CutOver, error: unknown, servesSince?: number): Promise<Stop> {
  const { host, log, next, before } = run
  const target = before ? releaseName(before) : 'the maintenance page'
  // They passed their tests, so the old release can be served with them as well.
  await run.putFilesBack().catch((failure) => log.warn(messageOf(failure)))
  try {
    await log.step(`Switch back to ${target}`, () => switchTo(host, before), 'always')
  } catch (failure) {
    const message = `${messageOf(error)}\nSwitching back to ${target} failed, too: ${messageOf(failure)}`
    return new Stop(
      message,
      ['See RUNBOOK.md, "Switching back failed".', 'npx tsx scripts/smoke-test.ts'],
      EXIT.needsHuman,
    )
  }
  const served =
    servesSince === undefined ? '' : ` after it had served for ${seconds((performance.now() - servesSince) / 1000)}`
  await stopAgain(run, error)
  const message = `${messageOf(error)}\n${next.version} was switched back${served}.`
  if (error instanceof BadRelease)
    return new BadRelease(message, ['Mend what the checks name, and deploy the next version.'], EXIT.rolledBack)
  return new Stop(message, [], isInterruption(error) ? EXIT.interrupted : EXIT.rolledBack)
}

const stopAgain = (run: CutOver, why: unknown) =>
  run.log
    .step(
      `Stop ${run.next.version} again`,
      () => (isInterruption(why) ? retireLater(run, run.next.color) : retire(run, run.next.color)),
      'always',
    )
    .catch((failure) => run.log.warn(messageOf(failure)))

/** Whether the idle color is idle: nginx's file names what its workers serve, and no earlier worker is left. */
export const isSettled = ({ torn, retiring }: Pick<Survey, 'torn' | 'retiring'>): boolean =>
  !torn && retiring.length === 0

/** Makes the idle color idle, after a run died between rename and reload, or before it had drained. */
export async function settle(
  host: Host,
  { active, torn }: Pick<Survey, 'active' | 'torn'>,
  drainSeconds: number,
): Promise<void> {
  if (torn) {
    // First the file alone: what `switchTo` puts back when nginx does not take it must not be the other release.
    await host.write(nameActive(active))
    await switchTo(host, active)
  }
  await host.write(drainCommand(drainSeconds), { timeout: drainSeconds + 20 })
}

/** Starts a color with its images; the containers of the other one are not touched. */
const startCommand = ({ color, version }: Active, images: Images): Command =>
  chain(writeColorEnv(color, version, images), startColor(servicesOf(color)))

const writeColorEnv = (color: Color, version: string, images: Images): Command => {
  const file = `${ROOT}/${colorEnv(color)}`
  return chain(
    sh`printf %s ${renderColorEnv(color, version, images)} > ${`${file}.next`}`,
    sh`mv ${`${file}.next`} ${file}`,
  )
}

async function gate({ host, log, config, dryRun, next }: CutOver): Promise<void> {
  if (dryRun)
    return log.say(
      `  would wait for ${servicesOf(next.color).join(' and ')} to be healthy, at most 4 times ${config.release.HEALTH_TIMEOUT} s`,
    )
  await healthGate(host, { color: next.color, seconds: config.release.HEALTH_TIMEOUT }, (text) => log.say(`  ${text}`))
}

const checkSurroundings = ({ host, config }: CutOver) =>
  runChecks([...httpChecks(config.front), ...databaseChecks(host)].filter(({ about }) => about === 'surroundings'))

async function smoke({ host, log, config, dryRun, next }: CutOver, before: CheckResult[]): Promise<void> {
  if (dryRun) return log.say('  would run the smoke tests through the front door')
  const results = await runChecks([...httpChecks(config.front, next.version), ...databaseChecks(host)])
  const against = results.filter((result) => countsAgainst(result, before))
  for (const result of results) {
    if (!result.ok && !against.includes(result)) log.warn(`It failed before the switch, too:${describeCheck(result)}`)
  }
  if (against.length === 0) return
  throw new BadRelease(
    `Smoke tests failed: ${against.length} of ${results.length}.\n${against.map(describeCheck).join('\n')}`,
  )
}

type Retiring = Pick<CutOver, 'host' | 'log' | 'config'>

/**
 * Stops a color that no longer gets traffic. First the old workers finish their requests; what holds them after that
 * are websockets, which the application closes cleanly when it is told to stop, and requests that take longer than
 * DRAIN_TIMEOUT, which it then finishes.
 */
export async function retire({ host, log, config }: Retiring, color: Color): Promise<void> {
  const seconds = config.release.DRAIN_TIMEOUT
  const say = (line: string) =>
    line === 'left' &&
    log.say(
      `  after ${seconds} s some connections are left, probably websockets; the application is told to close them`,
    )
  await host.write(retireCommand(color, seconds), { timeout: seconds + 110, onLine: say })
}

/** The server does it by itself, for who was asked to stop; the next run waits for it, as for every command. */
async function retireLater({ host, config }: Retiring, color: Color): Promise<void> {
  await host.write(sh`sh -c ${retireCommand(color, config.release.DRAIN_TIMEOUT).shell} > /dev/null 2>&1 < /dev/null &`)
}

/** The containers are kept: a rollback starts them again. Docker kills what has not ended after its stop grace period. */
const retireCommand = (color: Color, seconds: number): Command =>
  chain(drainCommand(seconds), sh`docker stop ${servicesOf(color).map((service) => `kgc-${service}-1`)}`)
