import { type Active, type Color, releaseName, renderColorEnv, servicesOf } from './color.ts'
import { startColor } from './compose.ts'
import type { Config } from './config.ts'
import { BadRelease, EXIT, messageOf, Stop } from './errors.ts'
import { healthGate } from './gate.ts'
import type { Host } from './host.ts'
import { colorEnv, ROOT } from './layout.ts'
import type { Log } from './log.ts'
import type { Images } from './release.ts'
import { type Command, chain, script, sh } from './shell.ts'
import { type CheckResult, databaseChecks, httpChecks, runChecks } from './smoke.ts'
import { drainCommand, followActive, switchTo } from './switch.ts'

export type CutOver = {
  host: Host
  log: Log
  config: Config<'front' | 'release'>
  dryRun: boolean
  next: Active
  images: Images
  /** What serves now; undefined before the first deploy. */
  before: Active | undefined
}

/**
 * From an idle color to all traffic on it: start, health gate, switch, smoke tests. Whatever fails before the switch
 * leaves the old release untouched; whatever fails after it, an interruption too, is switched back at once.
 * @throws Stop with exit code 1 (never switched), 4 (switched and back), 130 (interrupted, switched back if need be) or
 * 5 (the server could not be reached to switch back)
 */
export async function cutOver(run: CutOver): Promise<void> {
  const { host, log, next } = run
  try {
    await log.step(`Start ${next.version} as ${next.color}`, () =>
      host.write(startCommand(next, run.images), { timeout: 180 }),
    )
    await log.step('Health gate', () => gate(run))
  } catch (error) {
    await log
      .step(`Stop ${next.version} again`, () => host.write(stopColor(next.color), { timeout: 60 }), 'always')
      .catch(() => {})
    throw error
  }
  try {
    await log.step(`Switch to ${releaseName(next)}`, () => switchTo(host, next))
    await log.step('Smoke tests', () => smoke(run))
  } catch (error) {
    throw await switchBack(run, error)
  }
}

/** @returns the error to throw: what went wrong, and that it was undone */
async function switchBack(run: CutOver, error: unknown): Promise<Stop> {
  const { host, log, next, before } = run
  const target = before ? releaseName(before) : 'the maintenance page'
  try {
    await log.step(`Switch back to ${target}`, () => switchTo(host, before), 'always')
  } catch (failure) {
    const message = `${messageOf(error)}\nSwitching back to ${target} failed, too: ${messageOf(failure)}`
    return new Stop(message, ['npx tsx scripts/smoke-test.ts', 'npx tsx scripts/rollback.ts'], EXIT.needsHuman)
  }
  await log
    .step(`Stop ${next.version} again`, () => retire(run, next.color), 'always')
    .catch((failure) => log.warn(messageOf(failure)))
  const message = `${messageOf(error)}\n${next.version} was switched back.`
  if (error instanceof BadRelease) return new BadRelease(message, [], EXIT.rolledBack)
  const interrupted = error instanceof Stop && error.code === EXIT.interrupted
  return new Stop(message, [], interrupted ? EXIT.interrupted : EXIT.rolledBack)
}

/**
 * Makes sure that the idle color is idle: lets nginx follow its file when a run died between rename and reload, and
 * waits for earlier workers.
 */
export async function settle(host: Host, active: Active, serving: string, drainSeconds: number): Promise<void> {
  if (serving && serving !== releaseName(active)) await host.write(followActive(active), { timeout: 60 })
  await host.write(drainCommand(drainSeconds), { timeout: drainSeconds + 20 })
}

/** Starts a color with its images; the containers of the other one are not touched. */
export const startCommand = ({ color, version }: Active, images: Images): Command =>
  chain(writeColorEnv(color, version, images), startColor(servicesOf(color)))

export const writeColorEnv = (color: Color, version: string, images: Images): Command => {
  const file = `${ROOT}/${colorEnv(color)}`
  return chain(
    sh`printf %s ${renderColorEnv(color, version, images)} > ${`${file}.next`}`,
    sh`mv ${`${file}.next`} ${file}`,
  )
}

/** Stops but keeps the containers: a rollback starts them again. Docker kills what has not ended after its stop grace period. */
export const stopColor = (color: Color): Command =>
  script(
    `docker stop ${servicesOf(color)
      .map((service) => `kgc-${service}-1`)
      .join(' ')}`,
  )

async function gate({ host, log, config, dryRun, next }: CutOver): Promise<void> {
  if (dryRun)
    return log.say(
      `  would wait for ${servicesOf(next.color).join(' and ')} to be healthy, at most 4 times ${config.release.HEALTH_TIMEOUT} s`,
    )
  await healthGate(host, { color: next.color, seconds: config.release.HEALTH_TIMEOUT }, (text) => log.say(`  ${text}`))
}

async function smoke({ host, log, config, dryRun, next }: CutOver): Promise<void> {
  if (dryRun) return log.say('  would run the smoke tests through the front door')
  const results = await runChecks([...httpChecks(config.front, next.version), ...databaseChecks(host)])
  const failed = results.filter(({ ok }) => !ok)
  if (failed.length > 0)
    throw new BadRelease(
      `Smoke tests failed: ${failed.length} of ${results.length}.\n${failed.map(describeCheck).join('\n')}`,
    )
}

export const describeCheck = ({ name, ok, expected, got, ms }: CheckResult) =>
  ok ? `  ✔ ${name} (${ms} ms)` : `  ✘ ${name} (${ms} ms): expected ${expected}; came ${got}`

/**
 * Stops a color that no longer gets traffic. First the old workers finish their requests; what holds them after that
 * are websockets, and the application closes those cleanly when it is told to stop.
 */
export async function retire({ host, config }: Pick<CutOver, 'host' | 'config'>, color: Color): Promise<void> {
  const seconds = config.release.DRAIN_TIMEOUT
  await host.write(chain(drainCommand(seconds), stopColor(color)), { timeout: seconds + 90 })
}
