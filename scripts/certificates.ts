import { connectAdmin } from '../lib/admin.ts'
import { wantedCertificate } from '../lib/certificates/certificates.ts'
import {
  applyCertificates,
  certificateStatus,
  checkCertificates,
  renewCertificate,
} from '../lib/certificates/server.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook } from '../lib/cli.ts'
import { loadConfig, sshTarget } from '../lib/config.ts'
import { EXIT, Stop } from '../lib/errors.ts'
import { redactor } from '../lib/redact.ts'

await runbook(
  {
    name: 'certificates',
    summary: "One certificate for all sites, from Let's Encrypt or given as files, and its renewal on the server.",
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      status: { type: 'boolean', help: 'which certificate is served, until when, and whether all is well' },
    },
    examples: ['--status', '--dry-run', ''],
  },
  async ({ flags }, log) => {
    if (flags.status && flags['dry-run'])
      throw new Stop('--status changes nothing anyway.', ['Leave --dry-run away.'], EXIT.usage)
    const config = loadConfig(flags.env, ['server', 'access', 'certificate', 'notify'])
    log.hide(redactor(config.secrets))
    const wanted = wantedCertificate(config.certificate, config.notify.SLACK_WEBHOOK_URL)
    const target = sshTarget({ ...config.server, SSH_USER: config.access.SSH_ADMIN_USER })
    const dryRun = flags['dry-run']

    const host = await log.step('Connect', () =>
      connectAdmin(target, dryRun ? (command) => log.result(command.shell) : undefined),
    )
    try {
      if (flags.status) return await showStatus()
      const todo = await log.step('Compare', () => checkCertificates(host, wanted))
      for (const line of todo) log.say(`  ${line}`)
      if (todo.length === 0) log.say('  the server is set up as configured')
      else await log.step('Set up', () => applyCertificates(host, wanted), 'whole')
      const said = await log.step(
        wanted.source === 'files' ? 'Check' : 'Ask the authority, where it is due',
        () => renewCertificate(host),
        'whole',
      )
      if (dryRun) return EXIT.done
      if (said) log.say(said.replace(/^/gm, '  '))
      return await showStatus()
    } finally {
      await host.close()
    }

    async function showStatus() {
      const { code, stdout, stderr } = await certificateStatus(host)
      log.result(stdout.trimEnd())
      for (const line of stderr.split('\n').filter(Boolean)) log.warn(line)
      if (code !== 0 && flags.status) log.say('Put it right: npx tsx scripts/certificates.ts')
      return code === 0 ? EXIT.done : EXIT.failed
    }
  },
)
