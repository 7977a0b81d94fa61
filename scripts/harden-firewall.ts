import { connectAdmin } from '../lib/admin.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook } from '../lib/cli.ts'
import { loadConfig, sshTarget } from '../lib/config.ts'
import { confirm } from '../lib/confirm.ts'
import { EXIT, Stop } from '../lib/errors.ts'
import { REVERT_FLAG, revertSeconds, tryRules, wantedAccess } from '../lib/firewall/apply.ts'
import { currentRanges } from '../lib/firewall/cloudflare.ts'
import { readOriginPull } from '../lib/firewall/origin-pull.ts'
import { FAMILIES, firewallRules, httpsRanges } from '../lib/firewall/rules.ts'
import {
  assertSafe,
  checkActive,
  compare,
  FIREWALL,
  giveNginx,
  install,
  readCounters,
  surveyFirewall,
  switchOff,
} from '../lib/firewall/server.ts'
import { redactor } from '../lib/redact.ts'
import { sh } from '../lib/shell.ts'

await runbook(
  {
    name: 'harden-firewall',
    summary:
      'SSH only from admin addresses, 443 only from Cloudflare, 80 as configured, nothing else; also for what Docker publishes.',
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      status: { type: 'boolean', help: 'what is active, with counters, and whether it is what the files say' },
      off: { type: 'boolean', help: 'emergency: remove the rules; everything that listens is reachable' },
      ...REVERT_FLAG,
      force: { type: 'boolean', help: 'even when your own address is not an admin, or many ranges changed' },
      yes: { type: 'boolean', help: 'do not ask' },
    },
    examples: ['--dry-run', '', '--status', '--off'],
  },
  async ({ flags }, log) => {
    if ([flags.status, flags.off, flags['dry-run']].filter(Boolean).length > 1)
      throw new Stop('--status, --off and --dry-run exclude each other.', ['Give one of them.'], EXIT.usage)
    const config = loadConfig(flags.env, ['server', 'access', 'notify'])
    log.hide(redactor(config.secrets))
    const { access: settings } = config
    const target = sshTarget({ ...config.server, SSH_USER: settings.SSH_ADMIN_USER })
    const seconds = revertSeconds(flags)

    const host = await log.step('Connect', () => connectAdmin(target))
    try {
      const found = await log.step('Survey', () => surveyFirewall(host))
      if (flags.off) {
        await confirm(`Remove the firewall of ${host.name}? Everything that listens is reachable then.`, flags.yes)
        await log.step('Off', () => switchOff(host))
        log.say('The firewall is off, also after a restart. Back on: npx tsx scripts/harden-firewall.ts')
        return EXIT.done
      }
      if (flags.status) {
        log.result(await readCounters(host))
        const check = await checkActive(host)
        log.say(
          check.code === 0
            ? 'What is active is what the files on the server say.'
            : `${check.stderr.trim()}\nPut it right: npx tsx scripts/harden-firewall.ts`,
        )
        return check.code === 0 ? EXIT.done : EXIT.failed
      }
      const forNginx = readOriginPull(settings)
      const cloudflare = await log.step("Cloudflare's ranges", () =>
        currentRanges(settings, httpsRanges(found.kept), flags.force, (text) => log.warn(text)),
      )
      const access = wantedAccess(settings, target.port, cloudflare)
      assertSafe(found, access, flags.force)
      const rules = { 4: firewallRules(access, 4), 6: firewallRules(access, 6) }
      const changes = await log.step('Compare', () => compare(host, rules))
      if (flags['dry-run']) for (const family of FAMILIES) log.result(`# IPv${family}\n${rules[family]}`)
      for (const family of FAMILIES) {
        log.say(`IPv${family}: ${changes[family].length === 0 ? 'nothing changes' : 'what changes'}`)
        for (const line of changes[family]) log.result(line)
      }
      log.say(
        `nginx: believes Cloudflare's ranges, ${settings.ORIGIN_PULL_CA_FILE ? 'and wants a certificate from them' : 'wants no certificate'}`,
      )
      if (flags['dry-run']) return EXIT.done
      await confirm(`Apply these rules on ${host.name}?`, flags.yes)
      const rangesUrl = settings.CLOUDFLARE_RANGES_FILE ? undefined : settings.CLOUDFLARE_IPS_URL
      const name = await log.step('Install', () =>
        install(host, rules, { webhook: config.notify.SLACK_WEBHOOK_URL, rangesUrl }),
      )
      const apply = () => tryRules(host, seconds, name, () => connectAdmin(target))
      await log.step('Apply, and confirm over a new connection', apply, 'whole')
      await log.step('At every boot, and watched', () => host.write(sh`${FIREWALL} on`))
      await log.step('nginx believes the same ranges', () => giveNginx(host, forNginx))
      log.say(
        `The firewall of ${host.name} is active: SSH from ${access.admins.length} admin ranges, 443 from ${cloudflare.length} ranges of Cloudflare and ${access.extra.length} others.${settings.ORIGIN_PULL_CA_FILE ? ' Cloudflare must show its certificate.' : ''}`,
      )
      return EXIT.done
    } finally {
      await host.close()
    }
  },
)
