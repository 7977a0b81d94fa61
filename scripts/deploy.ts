import { currentActor } from '../lib/actor.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook, WAIT_FLAG, waitSeconds } from '../lib/cli.ts'
import { loadConfig, siteUrl, sshTarget } from '../lib/config.ts'
import type { Host } from '../lib/host.ts'
import { localHost } from '../lib/local.ts'
import { redactor } from '../lib/redact.ts'
import { type Change, changeRelease } from '../lib/release/change.ts'
import { localCommit, sendCommit, withFiles } from '../lib/release/checkout.ts'
import { applyStack, bringFiles, listStack, showDrift, startStack } from '../lib/release/files.ts'
import { migrate } from '../lib/release/migration.ts'
import { changedServices, type Drift, diffFiles, findDrift, mergeDrift } from '../lib/release/plan.ts'
import { preflight } from '../lib/release/preflight.ts'
import { pullImages } from '../lib/release/registry.ts'
import { parseVersion } from '../lib/release/release.ts'
import { connect } from '../lib/ssh.ts'

await runbook(
  {
    name: 'deploy',
    summary: 'Deploys one release, backend and frontend together, and switches back by itself when it does not hold.',
    positionals: { names: ['vN'], required: 1 },
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      ...WAIT_FLAG,
      stack: { type: 'boolean', help: 'also recreate the other services whose files changed (they are shown first)' },
    },
    examples: ['v123', 'v123 --dry-run', 'v123 --env production.env --wait 600', 'v123 --stack'],
  },
  async ({ positionals: [tag = ''], flags }, log) => {
    const started = Date.now()
    const version = parseVersion(tag)
    const wait = waitSeconds(flags)
    const config = loadConfig(flags.env, ['front', 'server', 'registry', 'release', 'notify'])
    log.hide(redactor(config.secrets))
    const dryRun = flags['dry-run']
    const actor = currentActor()
    const local = localHost()
    const commit = await localCommit(local)
    const short = commit.hash.slice(0, 7)
    log.say(
      `Deploy ${version} to ${config.server.SSH_HOST} for ${siteUrl(config.front)}, files of ${short}, by ${actor.who}`,
    )
    if (commit.dirty) log.warn('This checkout has changes that are not committed. They are not deployed.')

    /** What the files of this commit change in services, against those that the server has now. */
    const plannedDrift = (host: Host, serverCommit: string): Promise<Drift[]> | Drift[] =>
      serverCommit === commit.hash ? [] : withFiles(local, commit.hash, (files) => changedServices(host, files))

    const server = await log.step('Connect', () =>
      connect(sshTarget(config.server), dryRun ? (command) => log.result(command.shell) : undefined),
    )
    try {
      const checked = await log.step('Preflight', () => preflight(server, config, version))
      const { images } = checked
      const change: Omit<Change, 'prepare' | 'lookBack'> = {
        ...{ action: 'deploy', version, images, commit: commit.hash },
        details: [`Commit: ${short} ${commit.subject}`, `Author: ${commit.author}`],
      }
      return await changeRelease(
        { log, server, config, actor, dryRun, wait, started, known: checked.found },
        `deploy ${version}`,
        async () => ({
          ...change,
          // Nothing is done about it without --stack, so it need not delay the switch.
          async lookBack(host) {
            if (!flags.stack && !dryRun) showDrift(log, await findDrift(host), false)
          },
          async prepare(host, found, note) {
            if (dryRun) log.result(await diffFiles(local, found.commit, commit.hash))
            await bringFiles(log, host, commit.hash, found, () => sendCommit(local, host, commit.hash, found.commit))
            const [services] = await log.step(`Pull ${version}`, () =>
              // On an empty server a dry run finds no files to read.
              Promise.all([
                dryRun && !found.commit ? [] : listStack(host, dryRun ? found.commit : commit.hash, found),
                // Not a step that the next run waits for: a rollback must not wait for a dead run's download.
                server.write(pullImages(images, version), { timeout: 900 }),
              ]),
            )
            // Before what is new starts: that may need the others as they are to be.
            if ((flags.stack || dryRun) && found.commit) {
              const drift = await log.step('Compare the stack', async () =>
                mergeDrift(await findDrift(host), dryRun ? await plannedDrift(host, found.commit) : []),
              )
              showDrift(log, drift, flags.stack)
              if (flags.stack && drift.length > 0) await applyStack(log, host, drift)
            }
            const missing = services.filter((service) => found.containers[service] !== 'running')
            if (missing.length > 0)
              await log.step('Start what does not run', () => startStack(log, host, found, missing))
            await migrate({ host, log, note, command: config.release.MIGRATE_COMMAND, image: images.backend })
          },
        }),
      )
    } finally {
      await server.close()
    }
  },
)
