import type { Actor } from '../actor.ts'
import type { Config } from '../config.ts'
import type { Host } from '../host.ts'
import { withLock } from '../lock.ts'
import type { Log } from '../log.ts'

/** Who restores where, and how they want to be asked. */
export type Session = {
  log: Log
  server: Host
  config: Config<'front' | 'server' | 'notify'>
  actor: Actor
  dryRun: boolean
  /** Seconds to wait for another run. */
  wait: number
  /** The --confirm flag. */
  confirmed: string | undefined
}

/** Work under the server's lock. */
export const locked = <T>(
  { server, log, actor, dryRun, wait }: Session,
  action: string,
  work: (host: Host) => Promise<T>,
): Promise<T> => withLock(server, log, { ...actor, action }, { dryRun, wait }, work)
