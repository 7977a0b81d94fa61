import { randomUUID } from 'node:crypto'
import { currentActor } from '../lib/actor.ts'
import { localCommit } from '../lib/checkout.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook, WAIT_FLAG, waitSeconds } from '../lib/cli.ts'
import { other } from '../lib/color.ts'
import { loadConfig, siteUrl, sshTarget } from '../lib/config.ts'
import { cutOver, settle } from '../lib/cutover.ts'
import { BadRelease, EXIT, messageOf, Stop } from '../lib/errors.ts'
import { bringFiles, startStack } from '../lib/files.ts'
import { record } from '../lib/history.ts'
import { localHost } from '../lib/local.ts'
import { withLock } from '../lib/lock.ts'
import { seconds } from '../lib/log.ts'
import { preflight } from '../lib/preflight.ts'
import { redactor } from '../lib/redact.ts'
import { pullImages } from '../lib/registry.ts'
import { parseVersion } from '../lib/release.ts'
import { notify } from '../lib/slack.ts'
import { connect } from '../lib/ssh.ts'
import { describeServing, survey } from '../lib/survey.ts'

await runbook(
  {
    name: 'deploy',
    summary: 'Deploys one release, backend and frontend together, and switches back by itself when it does not hold.',
    positionals: { names: ['vN'], required: 1 },
    flags: { ...ENV_FLAG, ...DRY_RUN_FLAG, ...WAIT_FLAG },
    examples: ['v123', 'v123 --dry-run', 'v123 --env production.env --wait 600'],
  },
  async ({ positionals: [tag = ''], flags }, log) => {
    const started = Date.now()
    const version = parseVersion(tag)
    const config = loadConfig(flags.env, ['front', 'server', 'registry', 'release', 'notify'])
    log.hide(redactor(config.secrets))
    const dryRun = flags['dry-run']
    const actor = currentActor()
    const local = localHost()
    const commit = await localCommit(local)
    const url = siteUrl(config.front)
    log.say(
      `Deploy ${version} to ${config.server.SSH_HOST} for ${url}, files of ${commit.hash.slice(0, 7)}, by ${actor.who}`,
    )
    if (commit.dirty) log.warn('This checkout has changes that are not committed. They are not deployed.')

    const server = await log.step('Connect', () =>
      connect(sshTarget(config.server), dryRun ? (command) => log.result(command.shell) : undefined),
    )
    try {
      const { images } = await log.step('Preflight', () => preflight(server, config, version))
      return await withLock(
        server,
        log,
        { ...actor, action: `deploy ${version}` },
        { dryRun, wait: waitSeconds(flags) },
        async (host) => {
          const found = await survey(host)
          const before = found.active
          const next = { color: before ? other(before.color) : 'blue', version } as const
          const run = {
            id: randomUUID(),
            action: 'deploy',
            version,
            images,
            commit: commit.hash,
            actor: actor.who,
          } as const
          log.say(`  ${describeServing(found)} ${version} goes to ${next.color}.`)
          const announced = dryRun
            ? undefined
            : notify(log, config.notify.SLACK_WEBHOOK_URL, `Deploy ${version} started by ${actor.who}: ${url}`)
          await record(host, {
            ...run,
            at: new Date().toISOString(),
            outcome: 'started',
            ...(before ? { from: before.version } : {}),
          })
          try {
            await log.step(`Files of ${commit.hash.slice(0, 7)}`, () => bringFiles(local, host, commit, found))
            await log.step(`Pull ${version}`, () => host.write(pullImages(images), { timeout: 900 }))
            await log.step('Start what does not run', () => startStack(host, found))
            if (before)
              await log.step('Idle color is idle', () =>
                settle(host, before, found.serving, config.release.DRAIN_TIMEOUT),
              )
            await cutOver({ host, log, config, dryRun, next, images, before })
          } catch (error) {
            const now = await survey(server).then(describeServing, messageOf)
            await record(host, {
              id: run.id,
              outcome: error instanceof BadRelease ? 'bad' : 'failed',
              reason: messageOf(error),
              timings: log.timings,
            })
            await notify(
              log,
              config.notify.SLACK_WEBHOOK_URL,
              `❌ Deploy ${version} FAILED at "${log.current}". ${now} ${url}`,
            )
            throw error instanceof Stop ? error.withServing(now) : error
          }
          const took = (Date.now() - started) / 1000
          await record(host, { id: run.id, outcome: 'good', timings: log.timings, seconds: took })
          if (dryRun) {
            log.say('Dry run: nothing was changed.')
            return EXIT.done
          }
          await announced
          await notify(
            log,
            config.notify.SLACK_WEBHOOK_URL,
            `✅ Deploy ${version} SUCCESS\n• Commit: ${commit.hash.slice(0, 7)} ${commit.subject}\n• Author: ${commit.author}\n• Duration: ${seconds(took)}\n• URL: ${url}`,
          )
          log.result(`✅ Deploy ${version} SUCCESS in ${seconds(took)}: ${url} is served by ${next.color}.`)
          return EXIT.done
        },
      )
    } finally {
      await server.close()
    }
  },
)
