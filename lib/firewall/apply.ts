import type { Cidr } from '../cidr.ts'
import { EXIT, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import type { AccessSettings } from '../settings.ts'
import { sh } from '../shell.ts'
import type { Access } from './rules.ts'
import { FIREWALL } from './server.ts'

export const REVERT_FLAG = {
  'revert-after': {
    type: 'string',
    value: 'SECONDS',
    help: 'what was before comes back unless confirmed (default 120)',
  },
} as const
const REVERT_SECONDS = 120

/** @throws Stop (exit 2) when --revert-after leaves too little time for a new connection */
export function revertSeconds({ 'revert-after': text }: { 'revert-after': string | undefined }): number {
  if (text === undefined) return REVERT_SECONDS
  // A new connection is given up after 10 s.
  if (/^\d{2,4}$/.test(text) && Number(text) >= 15) return Number(text)
  throw new Stop(`--revert-after ${text} is not a number of seconds from 15.`, [], EXIT.usage)
}

/** @param cloudflare its ranges, as `currentRanges` gives them */
export const wantedAccess = (settings: AccessSettings, sshPort: number, cloudflare: Cidr[]): Access => ({
  sshPort,
  admins: settings.ADMIN_ADDRESSES,
  interfaces: settings.SSH_ALLOW_INTERFACES,
  cloudflare,
  extra: settings.EXTRA_HTTPS_SOURCES,
  httpFrom: settings.HTTP_FROM,
})

export const tryFor = (seconds: number, name: string) => sh`${FIREWALL} try ${seconds} ${name}`

/**
 * Tries the next rules, and keeps them only when a new connection comes through.
 * @param name of these rules, as `install` gives it
 * @param connect opens that connection
 * @throws Stop that says when the server puts the old rules back, by itself
 */
export async function tryRules(host: Host, seconds: number, name: string, connect: () => Promise<Host>): Promise<void> {
  const until = await host.write(tryFor(seconds, name))
  try {
    // The connection that is open proves nothing: it would go on after a lock-out.
    const fresh = await connect()
    await fresh.write(sh`${FIREWALL} confirm ${name}`).finally(() => fresh.close())
  } catch (error) {
    throw new Stop(
      `The new rules are active but were not confirmed: ${messageOf(error)}\nThe server puts the old ones back at ${until} UTC, by itself.`,
      [`After that, see what is active: npx tsx scripts/harden-firewall.ts --status`],
    )
  }
}
