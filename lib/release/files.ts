import { compose, listServices, stackServices, startMissing } from '../compose.ts'
import { isInterruption, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { PROXY, ROOT, SERVICES } from '../layout.ts'
import type { Log } from '../log.ts'
import { chain, script, sh } from '../shell.ts'
import { checkoutCommit, NEXT, unpackNext } from './checkout.ts'
import { applyDrift, type Drift, describeDrift } from './plan.ts'
import type { Survey } from './survey.ts'
import { prepareActive } from './switch.ts'

/** The first start of the vendors' applications migrates their databases: minutes (Twenty's own start period is 300 s). */
const STACK_START_SECONDS = 900
const RESTART_SECONDS = 60

/**
 * Makes the server's files those of a commit. They are tested beside the ones that serve, Compose files and nginx files
 * alike, and take their place only when they are good.
 * @param send brings the commit to the server first, unless it is known to be there
 */
export async function bringFiles(
  log: Log,
  host: Host,
  commit: string,
  found: Survey,
  send = async () => {},
): Promise<void> {
  const isThere = found.commit === commit && found.active !== undefined && !found.checkoutPending
  const short = commit.slice(0, 7)
  await log.step(`Files of ${short}`, async () => {
    if (isThere) return
    await send()
    await host.write(chain(prepareActive, emptyColorEnvs, unpackNext(commit)))
    await host.write(chain(compose(sh`config --quiet`, `${ROOT}/${NEXT}`), testNginx), { timeout: 300 })
  })
  // A step of its own: what an interruption leaves running must not check out after the files were put back.
  if (!isThere) await log.step(`Check out ${short}`, () => host.write(checkoutCommit(commit)), 'whole')
}

/** Compose reads both files on every call, also before there are releases. */
export const emptyColorEnvs = script(`cd ${ROOT} && touch state/blue.env state/green.env`)

/** `nginx -t` on the next files, in a container of its own, without a network. */
const testNginx = compose(sh`run --rm --no-deps -T nginx-check`, `${ROOT}/${NEXT}`)

/**
 * The services that the server's files name besides the two colors and jobs; variables of .env can switch some on. Compose
 * takes 0.25 s to tell (measured), so the answer is kept on the server with what it belongs to.
 */
export async function listStack(host: Host, commit: string, found: Survey): Promise<string[]> {
  const of = `${commit}:${found.variables}`
  if (found.listed?.of === of) return found.listed.services
  const services = stackServices(await host.read(listServices))
  const line = [of, ...services].join(' ')
  await host.write(sh`cd ${ROOT} && echo ${line} > ${`${SERVICES}.next`} && mv ${`${SERVICES}.next`} ${SERVICES}`)
  return services
}

/**
 * Starts services of the stack in the order of their dependencies; on an empty server that is all of it. Once there is a
 * release, a service that does not come up is only named: a broken exporter must not stand in the way of a hotfix.
 */
export async function startStack(log: Log, host: Host, found: Survey, missing: string[]): Promise<void> {
  const seconds = found.active ? RESTART_SECONDS : STACK_START_SECONDS
  await host.write(startMissing(missing, seconds), { timeout: seconds + 60 }).catch((error) => {
    if (!found.active) throw error
    log.warn(
      `Of ${missing.join(', ')}, which did not run, not all came up: ${messageOf(error).split('\n').pop()?.trim()}`,
    )
  })
}

/**
 * Starts nginx where it does not run: without it there is nothing to switch.
 * @throws Stop when it does not start
 */
export async function startProxy(log: Log, host: Host, found: Survey): Promise<void> {
  if (found.containers['nginx-proxy'] === 'running') return
  const start = () => host.write(startMissing(['nginx-proxy'], RESTART_SECONDS), { timeout: RESTART_SECONDS + 60 })
  await log.step('Start nginx', start).catch((error) => {
    if (isInterruption(error)) throw error
    throw new Stop(`nginx does not start.\n${messageOf(error)}`, [`On the server: docker logs --tail 20 ${PROXY}`])
  })
}

/** Shows which services do not run as their files say. */
export function showDrift(log: Log, drift: Drift[], apply: boolean): void {
  if (drift.length === 0) return
  log.say('  These services do not run as their files say:')
  for (const line of describeDrift(drift)) log.say(`  ${line}`)
  if (!apply) log.say('  They are left as they are; deploy with --stack changes them.')
}

/** Makes services run as their files say. */
export async function applyStack(log: Log, host: Host, drift: Drift[]): Promise<void> {
  for (const command of applyDrift(drift, STACK_START_SECONDS))
    await log.step('Change the stack', () => host.write(command, { timeout: STACK_START_SECONDS + 60 }))
}
