import { currentActor } from '../lib/actor.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook, WAIT_FLAG, waitSeconds } from '../lib/cli.ts'
import { loadConfig, siteUrl, sshTarget } from '../lib/config.ts'
import { confirm } from '../lib/confirm.ts'
import { Stop } from '../lib/errors.ts'
import { ROOT } from '../lib/layout.ts'
import { redactor } from '../lib/redact.ts'
import { changeRelease } from '../lib/release/change.ts'
import { hasCommit, keepEdits } from '../lib/release/checkout.ts'
import { bringFiles, showDrift, startProxy } from '../lib/release/files.ts'
import { showReleases } from '../lib/release/list.ts'
import { changedServices, diffFiles, findDrift, mergeDrift } from '../lib/release/plan.ts'
import { assertRoomToPull } from '../lib/release/preflight.ts'
import { pullImages } from '../lib/release/registry.ts'
import { migrationsSince, parseVersion, type Release, releases, rollbackTarget } from '../lib/release/release.ts'
import { type Survey, survey } from '../lib/release/survey.ts'
import { connect } from '../lib/ssh.ts'

await runbook(
  {
    name: 'rollback',
    summary:
      'Goes back to a release that served well. Its containers or images are on the server, so no registry is needed.',
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      ...WAIT_FLAG,
      list: { type: 'boolean', help: 'only show the releases' },
      json: { type: 'boolean', help: 'with --list: as JSON' },
      to: { type: 'string', value: 'vN', help: 'the release to go to (default: the last good one)' },
      force: { type: 'boolean', help: 'go to a release that is known to be bad' },
      yes: { type: 'boolean', help: 'do not ask before going back past a database migration' },
    },
    examples: ['--list', '', '--to v122', '--to v122 --dry-run'],
  },
  async ({ flags }, log) => {
    const started = Date.now()
    const to = flags.to === undefined ? undefined : parseVersion(flags.to)
    if (flags.list) return showReleases(log, flags.env, flags.json)
    const wait = waitSeconds(flags)
    const config = loadConfig(flags.env, ['front', 'server', 'release', 'notify'])
    log.hide(redactor(config.secrets))
    const actor = currentActor()
    const dryRun = flags['dry-run']
    log.say(
      `Rollback to ${to ?? 'the last good release'} on ${config.server.SSH_HOST} for ${siteUrl(config.front)}, by ${actor.who}`,
    )

    const server = await log.step('Connect', () =>
      connect(sshTarget(config.server), dryRun ? (command) => log.result(command.shell) : undefined),
    )
    let agreed = flags.yes || dryRun
    /** Asked before the lock is taken, so that nobody waits for an answer; under the lock, what changed meanwhile is refused. */
    const choose = async (found: Survey): Promise<Release> => {
      if (!found.active) throw new Stop('Nothing was deployed on this server yet.', ['npx tsx scripts/deploy.ts vN'])
      const all = releases(found.records)
      const target = rollbackTarget(all, found.active.version, to, flags.force)
      const migrations = migrationsSince(all, target).map(({ version, migration }) => `${version} (${migration})`)
      if (migrations.length === 0) return target
      await confirm(
        `The database was migrated after ${target.version}: ${migrations.join(', ')}. ${target.version} must work with that schema. Go on?`,
        agreed,
      )
      agreed = true
      return target
    }
    try {
      const known = await survey(server)
      await choose(known)
      const run = { log, server, config, actor, dryRun, wait, started, known }
      return await changeRelease(run, `rollback to ${to ?? 'the last good release'}`, async (found) => {
        const target = await choose(found)
        const hasFiles = await hasCommit(server, ROOT, target.commit)
        if (!hasFiles)
          log.warn(`The files of ${target.commit.slice(0, 7)} are not on the server; those that serve stay.`)
        const commit = hasFiles ? target.commit : found.commit
        return {
          ...{ action: 'rollback', version: target.version, images: target.images, commit },
          details: [`From: ${found.active?.version}`, `By: ${actor.who}`],
          async lookBack(host) {
            if (!dryRun) showDrift(log, await findDrift(host), false)
          },
          async prepare(host) {
            if (dryRun) {
              log.result(await diffFiles(host, found.commit, commit, ROOT))
              const planned = commit === found.commit ? [] : await changedServices(host, commit)
              showDrift(log, mergeDrift(await findDrift(host), planned), false)
            }
            await log.step(`Images of ${target.version}`, async () => {
              await assertRoomToPull(server, found, target.images, config.release.MIN_FREE_DISK_GB)
              await server.write(pullImages(target.images, target.version), { timeout: 900 })
            })
            if (found.dirty.length > 0 && commit !== found.commit) await keepEdits(log, host)
            await bringFiles(log, host, commit, found)
            await startProxy(log, host, found)
          },
        }
      })
    } finally {
      await server.close()
    }
  },
)
