import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { DRY_RUN_FLAG, ENV_FLAG, runbook } from '../lib/cli.ts'
import { checkRanges, readRanges } from '../lib/cloudflare.ts'
import { loadConfig, sshTarget } from '../lib/config.ts'
import { confirm } from '../lib/confirm.ts'
import { EXIT, messageOf, Stop } from '../lib/errors.ts'
import { FAMILIES, firewallRules, httpsRanges } from '../lib/firewall.ts'
import {
  assertSafe,
  checkActive,
  compare,
  FIREWALL,
  install,
  readCounters,
  surveyFirewall,
  switchOff,
} from '../lib/firewall-server.ts'
import { redactor } from '../lib/redact.ts'
import { sh } from '../lib/shell.ts'
import { connect } from '../lib/ssh.ts'

const RANGES_FILE = fileURLToPath(new URL('../nginx/cloudflare.conf', import.meta.url))
const REVERT_SECONDS = 120

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
      'revert-after': { type: 'string', value: 'SECONDS', help: 'old rules come back unless confirmed (default 120)' },
      force: { type: 'boolean', help: 'even when your own address is not an admin, or many ranges changed' },
      yes: { type: 'boolean', help: 'do not ask' },
    },
    examples: ['--dry-run', '', '--status', '--off'],
  },
  async ({ flags }, log) => {
    if ([flags.status, flags.off, flags['dry-run']].filter(Boolean).length > 1)
      throw new Stop('--status, --off and --dry-run exclude each other.', ['Give one of them.'], EXIT.usage)
    const config = loadConfig(flags.env, ['server', 'access'])
    log.hide(redactor(config.secrets))
    const { access: settings } = config
    const target = sshTarget({ ...config.server, SSH_USER: settings.SSH_ADMIN_USER })
    const seconds = revertSeconds(flags['revert-after'])
    const file = settings.CLOUDFLARE_RANGES_FILE ?? RANGES_FILE
    const cloudflare = readRanges(readFileSync(file, 'utf8'), file)
    const access = {
      sshPort: target.port,
      admins: settings.ADMIN_ADDRESSES,
      interfaces: settings.SSH_ALLOW_INTERFACES,
      https: [...cloudflare, ...settings.EXTRA_HTTPS_SOURCES],
      httpFrom: settings.HTTP_FROM,
    }
    const rules = { 4: firewallRules(access, 4), 6: firewallRules(access, 6) }

    const host = await log.step('Connect', () => connect(target))
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
      const last = httpsRanges(found.kept).filter(
        ({ text }) => !settings.EXTRA_HTTPS_SOURCES.some((extra) => extra.text === text),
      )
      checkRanges(cloudflare, last, flags.force)
      assertSafe(found, access, flags.force)
      const changes = await log.step('Compare', () => compare(host, rules))
      if (flags['dry-run']) for (const family of FAMILIES) log.result(`# IPv${family}\n${rules[family]}`)
      for (const family of FAMILIES) {
        log.say(`IPv${family}: ${changes[family].length === 0 ? 'nothing changes' : 'what changes'}`)
        for (const line of changes[family]) log.result(line)
      }
      if (flags['dry-run']) return EXIT.done
      await confirm(`Apply these rules on ${host.name}?`, flags.yes)
      await log.step('Install', () => install(host, rules))
      const apply = async () => confirmAnew(await host.write(sh`${FIREWALL} try ${seconds}`))
      await log.step('Apply, and confirm over a new connection', apply, 'whole')
      await log.step('At every boot', () => host.write(sh`systemctl enable -q --now kgc-firewall.service`))
      log.say(
        `The firewall of ${host.name} is active: SSH from ${access.admins.length} admin ranges, 443 from ${access.https.length} ranges.`,
      )
      return EXIT.done
    } finally {
      await host.close()
    }

    async function confirmAnew(until: string): Promise<void> {
      try {
        // The connection that is open proves nothing: it would go on after a lock-out.
        const fresh = await connect(target)
        await fresh.write(sh`${FIREWALL} confirm`).finally(() => fresh.close())
      } catch (error) {
        throw new Stop(
          `The new rules are active but were not confirmed: ${messageOf(error)}\nThe server puts the old ones back at ${until} UTC, by itself.`,
          [`After that, see what is active: npx tsx scripts/harden-firewall.ts --status`],
        )
      }
    }
  },
)

function revertSeconds(text: string | undefined): number {
  if (text === undefined) return REVERT_SECONDS
  // A new connection is given up after 10 s.
  if (/^\d{2,4}$/.test(text) && Number(text) >= 15) return Number(text)
  throw new Stop(`--revert-after ${text} is not a number of seconds from 15.`, [], EXIT.usage)
}
