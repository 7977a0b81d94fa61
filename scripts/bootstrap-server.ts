import { connectAdmin, connectFirst } from '../lib/admin.ts'
import { sshd, user } from '../lib/bootstrap/access.ts'
import { dockerRepository, dockerRuns, dockerSettings, isDecided, planDocker } from '../lib/bootstrap/docker.ts'
import { assertFit, type Facts, limitsFor, readCandidates, readFacts } from '../lib/bootstrap/facts.ts'
import { assertFirewallFits, firewall, rangesFor } from '../lib/bootstrap/firewall.ts'
import { environment, redisUsers } from '../lib/bootstrap/secrets.ts'
import * as stack from '../lib/bootstrap/stack.ts'
import { applyStep, oneAtATime, type State, type Step, surveySteps } from '../lib/bootstrap/step.ts'
import * as system from '../lib/bootstrap/system.ts'
import { wantedCertificate } from '../lib/certificates/certificates.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook } from '../lib/cli.ts'
import { type Config, loadConfig, sshTarget } from '../lib/config.ts'
import { confirm } from '../lib/confirm.ts'
import { EXIT, Stop } from '../lib/errors.ts'
import { REVERT_FLAG, revertSeconds } from '../lib/firewall/apply.ts'
import { readOriginPull } from '../lib/firewall/origin-pull.ts'
import { redactor } from '../lib/redact.ts'
import { connect } from '../lib/ssh.ts'
import { table } from '../lib/table.ts'

const DOCKER_PACKAGES = ['docker.io', 'docker-cli', 'docker-compose', 'docker-compose-v2']

await runbook(
  {
    name: 'bootstrap-server',
    summary: 'Makes a blank Debian or Ubuntu server, reached as root by key, one that deploy.ts can deploy to.',
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      ...REVERT_FLAG,
      check: { type: 'boolean', help: 'change nothing; exit 1 when the server is not as it should be, naming what' },
      yes: { type: 'boolean', help: 'do not ask' },
    },
    examples: ['--dry-run', '', '--check'],
  },
  async ({ flags }, log) => {
    const [check, dryRun] = [flags.check, flags['dry-run']]
    if (check && dryRun) throw new Stop('--check and --dry-run exclude each other.', ['Give one of them.'], EXIT.usage)
    const config = loadConfig(flags.env, [
      'front',
      'server',
      'registry',
      'access',
      'certificate',
      'notify',
      'objectStore',
      'backup',
      'blank',
    ])
    log.hide(redactor(config.secrets))
    const seconds = revertSeconds(flags)
    const target = sshTarget({ ...config.server, SSH_USER: config.access.SSH_ADMIN_USER })

    const server = await log.step('Connect', () =>
      connectFirst(target, dryRun ? (command) => log.result(command.shell) : undefined),
    )
    try {
      const facts = await log.step('Look at the server', () => readFacts(server))
      assertFit(facts, config.access, server.name)
      // A check names all that is not as it should be.
      if (!check) await assertFirewallFits(server, config.access)
      const steps = await log.step('Plan', () => planSteps(facts))
      const before = await log.step('Compare', () => surveySteps(server, steps))
      const missing = steps.filter((_, index) => before[index]?.drift.length)
      log.result(
        table([
          ['STEP', 'STATE'],
          ...before.flatMap((state) => rows(state, { fine: 'is so', wrong: 'to do' }, check ? 1000 : 4)),
        ]),
      )
      if (missing.length === 0) log.say(`${server.name} is as it should be; nothing is to do.`)
      if (check && missing.length > 0)
        throw new Stop(`${server.name} is not as it should be: ${missing.map(({ title }) => title).join(', ')}.`, [
          'Put it right: npx tsx scripts/bootstrap-server.ts',
        ])
      if (check || missing.length === 0) return EXIT.done
      if (!dryRun) await confirm(`Change ${missing.length} things on ${server.name}?`, flags.yes)

      const host = oneAtATime(server)
      for (const step of missing) {
        if (dryRun) log.result(`\n# ${step.title}`)
        await log.step(step.title, () => applyStep(host, step, dryRun), 'whole')
      }
      if (dryRun) return EXIT.done

      const after = await log.step('Compare again', () => surveySteps(server, steps))
      log.result(
        table([
          ['STEP', 'STATE'],
          ...after.flatMap((state, index) =>
            rows(state, { fine: before[index]?.drift.length ? 'done' : 'was so', wrong: 'NOT DONE' }),
          ),
        ]),
      )
      const left = after.filter(({ drift }) => drift.length > 0)
      if (left.length > 0)
        throw new Stop(`These are still not as they should be: ${left.map(({ title }) => title).join(', ')}.`, [
          'Run it again; what is left after that is named in the table.',
        ])
      const first = config.certificate.CERTIFICATE === 'files' ? '' : 'npx tsx scripts/certificates.ts, then '
      log.say(`${server.name} is ready. Next: ${first}npx tsx scripts/deploy.ts vN`)
      return EXIT.done
    } finally {
      await server.close()
    }

    async function planSteps(found: Facts): Promise<Step[]> {
      const admin = config.access.SSH_ADMIN_USER
      const docker = planDocker(found, isDecided(found) ? {} : await readCandidates(server, DOCKER_PACKAGES))
      if (docker.from !== 'present')
        log.say(
          `  Docker comes from ${docker.from === 'docker' ? 'its own repository' : 'the distribution'}: ${docker.why}`,
        )
      const [distribution] = found.system.split(' ') as ['debian' | 'ubuntu']
      const { access, notify } = config
      const cloudflare = await rangesFor(server, access, (text) => log.warn(text))
      const reports = {
        webhook: notify.SLACK_WEBHOOK_URL,
        rangesUrl: access.CLOUDFLARE_RANGES_FILE ? undefined : access.CLOUDFLARE_IPS_URL,
      }
      const wanted = wantedCertificate(config.certificate, notify.SLACK_WEBHOOK_URL)
      const forNginx = readOriginPull(access)
      const asAdmin = () => connectAdmin(target)
      const fresh = (name: string) => (name === admin ? asAdmin() : connect({ ...target, user: name }))
      return [
        ...(docker.from === 'docker' ? [dockerRepository(distribution, found.codename)] : []),
        dockerSettings(found.daemonJson, config.blank.DOCKER_HUB_MIRROR),
        system.packages([...system.PACKAGES, ...wanted.packages, ...docker.packages]),
        dockerRuns,
        ...[system.timeAndZone, system.swap, system.kernel, system.modules, system.journal, system.upgrades],
        ...(admin === 'root' ? [] : [user('Admin user', admin, found.login, 'sudo')]),
        user('Deploy user', 'deploy', found.login, 'docker'),
        system.bans(
          config.access.ADMIN_ADDRESSES.map(({ text }) => text),
          target.port,
        ),
        sshd({ admin, deploy: 'deploy' }, fresh, seconds),
        stack.folders,
        environment(stackValues(config, found)),
        redisUsers,
        stack.nginxLists(access.ADMIN_ADDRESSES, cloudflare),
        stack.certificate(wanted),
        ...(config.objectStore.S3_CA_FILE ? [stack.storeAuthority(config.objectStore.S3_CA_FILE)] : []),
        stack.checkout,
        firewall(access, target.port, cloudflare, reports, forNginx, asAdmin, seconds),
      ]
    }
  },
)

/** What of the operator's configuration the stack itself wants to know. */
function stackValues(
  {
    front,
    registry,
    blank,
    notify,
    backup,
    objectStore: { S3_CA_FILE: ca, ...objectStore },
  }: Config<'front' | 'registry' | 'blank' | 'notify' | 'objectStore' | 'backup'>,
  facts: Facts,
) {
  return {
    DOMAIN: front.DOMAIN,
    REGISTRY: registry.REGISTRY,
    SMOKE_EMAIL: front.SMOKE_EMAIL,
    SMOKE_PASSWORD: front.SMOKE_PASSWORD,
    SZAMLAZZ_HU_AGENT_KEY: blank.SZAMLAZZ_HU_AGENT_KEY,
    KGC_DB_USER: 'kgc_a',
    TWENTY_DB_USER: 'twenty_a',
    CHATWOOT_DB_USER: 'chatwoot_a',
    HORILLA_DB_USER: 'horilla_a',
    ...objectStore,
    ...(ca ? stack.S3_AUTHORITY_VALUES : {}),
    ...backup,
    BACKUP_RECIPIENTS: backup.BACKUP_RECIPIENTS.join(','),
    ...(notify.SLACK_WEBHOOK_URL ? { SLACK_WEBHOOK_URL: notify.SLACK_WEBHOOK_URL } : {}),
    ...limitsFor(facts),
  }
}

/** A step's lines in the table; all of what is wrong with it, or only the first few. */
function rows({ title, drift, cannot }: State, states: { fine: string; wrong: string }, most = 4): string[][] {
  const state = drift.length > 0 ? states.wrong : cannot.length > 0 && states.fine !== 'done' ? 'not here' : states.fine
  const shown = drift.length > most ? [...drift.slice(0, most - 1), `and ${drift.length - most + 1} more`] : drift
  const details = [...shown, ...cannot.slice(0, 1).map((reason) => `not possible here: ${reason}`)]
  return [[title, state], ...details.map((line) => ['', `  ${line}`])]
}
