import { EXIT, Stop } from '../../lib/errors.ts'

/** What the rehearsal server can run, by code name: Debian 13, Ubuntu 22.04 and 24.04. */
export const SYSTEMS = ['trixie', 'jammy', 'noble'] as const
export type System = (typeof SYSTEMS)[number]

/** The images of the others are only built for who asks for one. */
export const SYSTEM: System = systemFrom(process.env.REHEARSAL_SYSTEM ?? 'trixie')
export const isUbuntu = (suite: string) => suite === 'jammy' || suite === 'noble'

function systemFrom(name: string): System {
  const system = SYSTEMS.find((one) => one === name)
  if (system) return system
  throw new Stop(`REHEARSAL_SYSTEM is '${name}'; there are ${SYSTEMS.join(', ')}.`, [], EXIT.usage)
}
