import type { Cidr } from '../cidr.ts'
import { tryFor, tryRules, wantedAccess } from '../firewall/apply.ts'
import { currentRanges } from '../firewall/cloudflare.ts'
import { ORIGIN_FILES } from '../firewall/origin-pull.ts'
import { FAMILIES, firewallRules, httpsRanges } from '../firewall/rules.ts'
import {
  assertSafe,
  FIREWALL,
  FIREWALL_FILES,
  giveNginx,
  install,
  NGINX_FILES,
  RANGES_URL,
  type Reports,
  readKept,
  surveyFirewall,
} from '../firewall/server.ts'
import type { Host } from '../host.ts'
import type { AccessSettings } from '../settings.ts'
import { sh } from '../shell.ts'
import { checkFile, type Step } from './step.ts'

/** Cloudflare's ranges: those that the server has, as it keeps them current itself; else those of today. */
export async function rangesFor(host: Host, settings: AccessSettings, warn: (text: string) => void): Promise<Cidr[]> {
  const last = httpsRanges(await readKept(host))
  return last.length > 0 ? last : currentRanges(settings, [], false, warn)
}

/**
 * Before anything is touched: what the last step would refuse. The programs that it misses come with an earlier step.
 * @throws Stop as `assertSafe`
 */
export async function assertFirewallFits(host: Host, settings: AccessSettings): Promise<void> {
  const found = await surveyFirewall(host)
  assertSafe({ ...found, missing: [] }, wantedAccess(settings, 0, []), false)
}

const checkOriginFile = (path: string, content: string | undefined) =>
  content === undefined ? `[ ! -e ${path} ] || echo '${path} is not wanted'` : checkFile({ path, content })

/**
 * The same rules that scripts/harden-firewall.ts applies, and in the same way.
 * @param forNginx see `originPullFiles`
 * @param connect opens a new connection that may do everything
 * @param seconds until rules that nobody confirmed go back
 */
export function firewall(
  settings: AccessSettings,
  sshPort: number,
  cloudflare: Cidr[],
  reports: Reports,
  forNginx: Partial<Record<string, string>>,
  connect: () => Promise<Host>,
  seconds: number,
): Step {
  const access = wantedAccess(settings, sshPort, cloudflare)
  const rules = { 4: firewallRules(access, 4), 6: firewallRules(access, 6) }
  const files = [
    ...FIREWALL_FILES,
    ...FAMILIES.map((family) => ({ path: `/etc/kgc/firewall/rules.v${family}`, content: rules[family] })),
    ...(reports.rangesUrl ? [{ path: RANGES_URL, content: reports.rangesUrl }] : []),
  ]
  const timers = ['kgc-firewall-watch.timer', ...(reports.rangesUrl ? ['kgc-cloudflare.timer'] : [])]
  return {
    title: 'Firewall',
    check: `
${files.map(checkFile).join('\n')}
[ ! -x ${FIREWALL} ] || ${FIREWALL} check 2>&1
systemctl is-enabled -q kgc-firewall || echo 'it does not start at boot'
for timer in ${timers.join(' ')}; do systemctl is-active -q $timer || echo "$timer is off"; done
${ORIGIN_FILES.map((name) => checkOriginFile(`${NGINX_FILES}/${name}`, forNginx[name])).join('\n')}`,
    async apply(host, dryRun) {
      if (!dryRun) assertSafe(await surveyFirewall(host), access, false)
      const name = await install(host, rules, reports)
      if (dryRun) await host.write(tryFor(seconds, name))
      else await tryRules(host, seconds, name, connect)
      await host.write(sh`${FIREWALL} on`)
      await giveNginx(host, forNginx)
    },
  }
}
