import { checkFile, type Step, serverText } from './bootstrap.ts'
import { checkRanges } from './cloudflare.ts'
import type { AccessSettings } from './config.ts'
import { FAMILIES, firewallRules, httpsRanges } from './firewall.ts'
import { startAtBoot, tryFor, tryRules, wantedAccess } from './firewall-apply.ts'
import { assertSafe, FIREWALL, install, surveyFirewall } from './firewall-server.ts'
import type { Host } from './host.ts'

/**
 * The same rules that scripts/harden-firewall.ts applies, and in the same way.
 * @param connect opens a new connection that may do everything
 * @param seconds until rules that nobody confirmed go back
 */
export function firewall(
  settings: AccessSettings,
  sshPort: number,
  connect: () => Promise<Host>,
  seconds: number,
): Step {
  const { access, cloudflare } = wantedAccess(settings, sshPort)
  checkRanges(cloudflare, [], false)
  const rules = { 4: firewallRules(access, 4), 6: firewallRules(access, 6) }
  const files = [
    { path: FIREWALL, content: serverText('kgc-firewall'), mode: '755' },
    ...FAMILIES.map((family) => ({ path: `/etc/kgc/firewall/rules.v${family}`, content: rules[family] })),
  ]
  return {
    title: 'Firewall',
    check: `
${files.map(checkFile).join('\n')}
[ ! -x ${FIREWALL} ] || ${FIREWALL} check 2>&1
systemctl is-enabled -q kgc-firewall || echo 'it does not start at boot'`,
    async apply(host, dryRun) {
      if (!dryRun) await refuseUnsafe(host)
      await install(host, rules)
      if (dryRun) await host.write(tryFor(seconds))
      else await tryRules(host, seconds, connect)
      await host.write(startAtBoot)
    },
  }

  async function refuseUnsafe(host: Host): Promise<void> {
    const found = await surveyFirewall(host)
    const extra = settings.EXTRA_HTTPS_SOURCES.map(({ text }) => text)
    const last = httpsRanges(found.kept).filter(({ text }) => !extra.includes(text))
    checkRanges(cloudflare, last, false)
    assertSafe(found, access, false)
  }
}
