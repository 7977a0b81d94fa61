import { type Commit, checkoutCommit, NEXT, sendCommit, unpackNext } from './checkout.ts'
import { compose, listServices, stackServices, startMissing } from './compose.ts'
import type { Host } from './host.ts'
import { ROOT } from './layout.ts'
import type { Log } from './log.ts'
import { applyDrift, type Drift, describeDrift, findDrift } from './plan.ts'
import { chain, script, sh } from './shell.ts'
import type { Survey } from './survey.ts'
import { prepareActive } from './switch.ts'

/** The first start of the vendors' applications migrates their databases: minutes (Twenty's own start period is 300 s). */
const STACK_START_SECONDS = 900

/**
 * Brings the commit's files onto the server. They are tested beside the ones that serve, Compose files and nginx files
 * alike, and take their place only when they are good.
 */
export async function bringFiles(local: Host, host: Host, commit: Commit, found: Survey): Promise<void> {
  if (found.commit === commit.hash) return
  await sendCommit(local, host, commit.hash, found.commit)
  await host.write(chain(prepareActive, emptyColorEnvs, unpackNext(commit.hash)))
  await host.write(chain(compose(sh`config --quiet`, `${ROOT}/${NEXT}`), testNginx(`${ROOT}/${NEXT}`)), {
    timeout: 300,
  })
  await host.write(checkoutCommit(commit.hash))
}

/** Compose reads both files on every call, also before there are releases. */
const emptyColorEnvs = script(`cd ${ROOT} && touch state/blue.env state/green.env`)

/** `nginx -t` in a container of its own, without a network. */
export const testNginx = (root: string) => compose(sh`run --rm --no-deps -T nginx-check`, root)

/**
 * Starts whatever of the stack does not run, in the order of its dependencies; on an empty server that is all of it.
 * What runs is left alone.
 * @returns the services that run otherwise than their files say
 */
export async function startStack(host: Host, found: Survey): Promise<Drift[]> {
  const [config, drift] = await Promise.all([host.read(listServices()), findDrift(host)])
  const missing = stackServices(config).filter((service) => found.containers[service] !== 'running')
  if (missing.length > 0)
    await host.write(startMissing(missing, STACK_START_SECONDS), { timeout: STACK_START_SECONDS + 60 })
  return drift
}

/** Shows what differs, and makes it so when asked to. */
export async function applyStack(log: Log, host: Host, drift: Drift[], apply: boolean): Promise<void> {
  log.say('  These services do not run as their files say:')
  for (const line of describeDrift(drift)) log.say(`  ${line}`)
  if (!apply) return log.say('  They are left as they are; deploy with --stack changes them.')
  await log.step('Change the stack', async () => {
    for (const command of applyDrift(drift, STACK_START_SECONDS))
      await host.write(command, { timeout: STACK_START_SECONDS + 60 })
  })
}
