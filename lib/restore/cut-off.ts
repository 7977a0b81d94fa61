import { EXIT, isInterruption, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { EXCHANGE, POSTGRES, ROOT } from '../layout.ts'
import { type Command, script, sh } from '../shell.ts'
import { withWorkshop } from './server.ts'
import { locked, type Session } from './session.ts'
import { type Exchange, swap } from './swap.ts'
import type { Task } from './task.ts'

/** The exchange that works now, or that was cut off when the server died; undefined when there is none. */
export async function readExchange(host: Host): Promise<Exchange | undefined> {
  const { stdout } = await host.probe(sh`cat ${`${ROOT}/${EXCHANGE}`}`)
  return stdout.trim() === '' ? undefined : (JSON.parse(stdout) as Exchange)
}

/**
 * Completes an exchange that was cut off, in the direction in which it was, so that what is done next begins with
 * everything whole; no backup runs meanwhile. Does nothing when there is none.
 * @param task what is done next
 * @param isNamed only of what was named, not of whatever came last
 * @throws Stop when it cannot be completed, which says what serves
 */
export async function completeCutOff(session: Session, task: Task, isNamed: boolean): Promise<void> {
  const { server, log } = session
  const cutOff = await readExchange(server)
  if (!cutOff) return
  const { stdout } = await server.probe(sh`docker inspect -f ${'{{.State.Running}}'} ${POSTGRES}`)
  if (stdout.trim() !== 'true') {
    const why = `The exchange of ${cutOff.what} was cut off, and can be completed only when PostgreSQL runs.`
    // A whole cluster leaves alone what waits for it. Everything else would set aside, or remove, what it is made of.
    if (task === 'time' || (task === 'undo' && !isNamed)) return log.warn(`${why} The next restore or undo does it.`)
    throw new Stop(`${why} Nothing was touched.`, [
      `docker logs --tail 30 ${POSTGRES}, and RUNBOOK.md, "PostgreSQL does not start"`,
    ])
  }
  await complete(session).catch((error) => {
    const isBusy = error instanceof Stop && error.code === EXIT.locked
    if (task !== 'time' || isBusy || isInterruption(error)) throw error
    // One that can never be completed must not be in the way of the cluster that makes it needless.
    log.warn(messageOf(error))
  })
}

const complete = (session: Session): Promise<void> =>
  locked(session, 'completion of an exchange that was cut off', async (host) => {
    // Read under the lock: it may have been one that was still working.
    const exchange = await readExchange(host)
    if (!exchange) return
    const title = `Complete the exchange of ${exchange.what}, which was cut off`
    await withWorkshop(host, () => session.log.step(title, () => swap(host, exchange), 'whole'))
  })

/** The command, unless an exchange is half done: what that needs must stay. */
export const unlessHalfDone = ({ shell }: Command): Command =>
  script(`[ -e ${ROOT}/${EXCHANGE} ] || {
${shell}
}`)
