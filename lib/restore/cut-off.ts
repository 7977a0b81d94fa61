import type { Host } from '../host.ts'
import { EXCHANGE, POSTGRES, ROOT } from '../layout.ts'
import { type Command, script, sh } from '../shell.ts'
import { locked, type Session } from './session.ts'
import { type Exchange, swap } from './swap.ts'

/** The exchange that works now, or that was cut off when the server died; undefined when there is none. */
export async function readExchange(host: Host): Promise<Exchange | undefined> {
  const { stdout } = await host.probe(sh`cat ${`${ROOT}/${EXCHANGE}`}`)
  return stdout.trim() === '' ? undefined : (JSON.parse(stdout) as Exchange)
}

/**
 * Completes an exchange that was cut off, in the direction in which it was, so that what is done next begins with
 * everything whole. Does nothing when there is none.
 * @throws Stop when it cannot be completed, which says what serves
 */
export async function completeCutOff(session: Session): Promise<void> {
  const { server, log } = session
  if (!(await readExchange(server))) return
  const { stdout } = await server.probe(sh`docker inspect -f ${'{{.State.Running}}'} ${POSTGRES}`)
  if (stdout.trim() !== 'true')
    return log.warn('An exchange was cut off. It is completed by the next restore or undo when PostgreSQL runs.')
  await locked(session, 'completion of an exchange that was cut off', async (host) => {
    // Read under the lock: it may have been one that was still working.
    const exchange = await readExchange(host)
    if (!exchange) return
    await log.step(`Complete the exchange of ${exchange.what}, which was cut off`, () => swap(host, exchange), 'whole')
  })
}

/** The command, unless an exchange is half done: what that needs must stay. */
export const unlessHalfDone = ({ shell }: Command): Command =>
  script(`[ -e ${ROOT}/${EXCHANGE} ] || {
${shell}
}`)
