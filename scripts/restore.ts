import { currentActor } from '../lib/actor.ts'
import { showCatalog } from '../lib/backup/catalog.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook, WAIT_FLAG, waitSeconds } from '../lib/cli.ts'
import { loadConfig, sshTarget } from '../lib/config.ts'
import { EXIT, type ExitCode } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { rebuildServer } from '../lib/rebuild/rebuild.ts'
import { redactor } from '../lib/redact.ts'
import { parseVersion } from '../lib/release/release.ts'
import { describeAside, drop, surveyAside, undo } from '../lib/restore/aside.ts'
import { restoreCluster } from '../lib/restore/cluster.ts'
import { completeCutOff } from '../lib/restore/cut-off.ts'
import { restoreFromBackup } from '../lib/restore/from-backup.ts'
import { readIdentities } from '../lib/restore/identity.ts'
import { FILES } from '../lib/restore/names.ts'
import { restorePart, undoPart } from '../lib/restore/one-part.ts'
import type { Session } from '../lib/restore/session.ts'
import { taskOf } from '../lib/restore/task.ts'
import { connect } from '../lib/ssh.ts'
import { parseTime, parseWhen } from '../lib/when.ts'

/** All that the scripts which it runs want, so that nothing is found missing half way. */
const BLANK_GROUPS = [
  ...(['front', 'server', 'registry', 'release', 'access', 'certificate'] as const),
  ...(['notify', 'objectStore', 'backup', 'opener', 'blank'] as const),
]

await runbook(
  {
    name: 'restore',
    summary:
      'Restores databases and files from a backup, or the whole PostgreSQL cluster to a moment: beside what serves, checked, then swapped. What served before is kept.',
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      ...WAIT_FLAG,
      list: { type: 'boolean', help: 'the backups that there are; needs nothing but the S3 keys' },
      status: { type: 'boolean', help: 'what restores left on the server: old databases, clusters and copies' },
      db: { type: 'string', value: 'NAMES', help: 'from a backup: these databases, with commas' },
      files: { type: 'boolean', help: 'from a backup: the uploads and the files of every vendor application' },
      all: { type: 'boolean', help: 'from a backup: every database and the files, swapped together' },
      queue: { type: 'boolean', help: 'from a backup: the queue of jobs, by itself' },
      grafana: { type: 'boolean', help: 'from a backup: Grafana, by itself' },
      run: { type: 'string', value: 'ID', help: 'the backup to take (default: the newest)' },
      before: { type: 'string', value: 'WHEN', help: 'the newest backup from before this time' },
      time: {
        type: 'string',
        value: 'WHEN',
        help: "the whole cluster at this moment: 14:05, '2026-11-23 14:05:30' (Budapest), with a zone, or newest",
      },
      'keep-side': { type: 'boolean', help: 'no swap: leave what was restored beside what serves, to copy from' },
      'other-server': { type: 'boolean', help: 'even when it is the backup of another server' },
      'to-blank': { type: 'boolean', help: 'a blank server becomes the one that the backup is of' },
      to: { type: 'string', value: 'vN', help: 'with --to-blank: this release, not the one that served' },
      undo: {
        type: 'boolean',
        help: 'swap back what the last restore set aside (with --db, --files, --queue or --grafana: only these)',
      },
      drop: { type: 'string', value: 'NAME', help: 'remove what --status shows' },
      confirm: { type: 'string', value: 'NAME', help: 'the name that you would be asked to type' },
    },
    examples: [
      '--list',
      '--db kgc --dry-run',
      '--db kgc',
      "--all --before '2026-11-23 02:00'",
      '--db kgc --keep-side',
      '--grafana',
      '--time 14:05',
      '--time newest',
      '--to-blank',
      '--undo',
    ],
  },
  async ({ flags }, log) => {
    const task = taskOf(flags)
    if (task === 'list') return list(log, flags.env)
    const when = task === 'time' ? parseWhen(flags.time ?? '') : undefined
    const before = flags.before === undefined ? undefined : parseTime('--before', flags.before)
    if (task === 'to-blank') {
      const config = loadConfig(flags.env, BLANK_GROUPS)
      const identities = readIdentities(config.opener.BACKUP_IDENTITY_FILE)
      log.hide(redactor([...config.secrets, ...identities]))
      await rebuildServer({
        ...{ log, config, identities, env: flags.env, dryRun: flags['dry-run'], actor: currentActor() },
        ...{ run: flags.run, before, confirmed: flags.confirm },
        to: flags.to === undefined ? undefined : parseVersion(flags.to),
      })
      return EXIT.done
    }
    const databases = flags.db?.split(',')
    const config = loadConfig(flags.env, ['front', 'server', 'notify'])
    const backups = task === 'backup' || task === 'part' ? loadConfig(flags.env, ['objectStore', 'opener']) : undefined
    const identities = backups ? readIdentities(backups.opener.BACKUP_IDENTITY_FILE) : []
    log.hide(redactor([...config.secrets, ...identities]))
    const dryRun = flags['dry-run']
    const server = await log.step('Connect', () =>
      connect(sshTarget(config.server), dryRun ? (command) => log.result(command.shell) : undefined),
    )
    const session: Session = {
      ...{ log, server, config, dryRun, actor: currentActor(), wait: waitSeconds(flags) },
      confirmed: flags.confirm,
    }
    try {
      const single = flags.queue ? 'queue' : flags.grafana ? 'grafana' : undefined
      const named = [...(databases ?? []), ...(flags.files ? [FILES] : [])]
      if (task !== 'status') await completeCutOff(session, task, named.length > 0 || single !== undefined)
      if (when) await restoreCluster(session, when, flags['keep-side'])
      else if (backups && single)
        await restorePart(session, backups.objectStore, identities, single, { run: flags.run, before })
      else if (single) await undoPart(session, single)
      else if (backups)
        await restoreFromBackup(session, backups.objectStore, identities, {
          ...{ run: flags.run, before, files: flags.files || flags.all },
          databases: flags.all ? undefined : (databases ?? []),
          ...{ keepSide: flags['keep-side'], otherServer: flags['other-server'] },
        })
      else {
        const aside = await log.step('Survey', () => surveyAside(server))
        log.result(describeAside(aside.server, aside))
        if (flags.drop !== undefined) await drop(session, aside, flags.drop)
        if (flags.undo) await undo(session, aside, named.length > 0 ? named : undefined)
      }
      return EXIT.done
    } finally {
      await server.close()
    }
  },
)

async function list(log: Log, env: string | undefined): Promise<ExitCode> {
  const { objectStore, secrets } = loadConfig(env, ['objectStore'])
  log.hide(redactor(secrets))
  await showCatalog(log, objectStore)
  return EXIT.done
}
