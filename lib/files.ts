import { type Commit, checkoutCommit, NEXT, sendCommit, unpackNext } from './checkout.ts'
import { compose, listServices, stackServices, startMissing } from './compose.ts'
import type { Host } from './host.ts'
import { ROOT } from './layout.ts'
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
 * What runs is left alone: `deploy --stack` is for changing it.
 * @returns the services that were started
 */
export async function startStack(host: Host, found: Survey): Promise<string[]> {
  const services = stackServices(await host.read(listServices()))
  const missing = services.filter((service) => found.containers[service] !== 'running')
  if (missing.length > 0)
    await host.write(startMissing(missing, STACK_START_SECONDS), { timeout: STACK_START_SECONDS + 60 })
  return missing
}
