import { currentActor } from '../lib/actor.ts'
import { catalogTable, readCatalog } from '../lib/backup/catalog.ts'
import { openStore } from '../lib/backup/object-store.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook, WAIT_FLAG, waitSeconds } from '../lib/cli.ts'
import { loadConfig, sshTarget } from '../lib/config.ts'
import { confirmName } from '../lib/confirm.ts'
import { EXIT, messageOf, Stop } from '../lib/errors.ts'
import type { Host } from '../lib/host.ts'
import { withLock } from '../lib/lock.ts'
import { redactor } from '../lib/redact.ts'
import { describeBeside, drop, undo } from '../lib/restore/aside.ts'
import { countLosses } from '../lib/restore/beside.ts'
import { localFree, withDownloads } from '../lib/restore/fetch.ts'
import { readIdentities, recipientsOf } from '../lib/restore/identity.ts'
import { FILES, stampOf } from '../lib/restore/names.ts'
import { assertPossible, describeChange, pickDatabases, pickFiles, pickRun } from '../lib/restore/plan.ts'
import { keepBeside, putInPlace, restoreAll } from '../lib/restore/run.ts'
import { surveyDatabases, withWorkshop } from '../lib/restore/server.ts'
import { notify } from '../lib/slack.ts'
import { connect } from '../lib/ssh.ts'
import { table } from '../lib/table.ts'

await runbook(
  {
    name: 'restore',
    summary:
      'Restores databases from a backup: beside the ones that serve, checked, then swapped in one moment. The old ones are kept.',
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      ...WAIT_FLAG,
      list: { type: 'boolean', help: 'the backups that there are; needs nothing but the S3 keys' },
      status: { type: 'boolean', help: 'what restores left on the server: old databases and copies' },
      db: { type: 'string', value: 'NAMES', help: 'the databases to restore, with commas' },
      files: { type: 'boolean', help: 'the uploads and the files of every vendor application' },
      all: { type: 'boolean', help: 'every database of the backup and the files, swapped together' },
      run: { type: 'string', value: 'ID', help: 'the backup to take (default: the newest)' },
      time: { type: 'string', value: 'TIME', help: 'the newest backup from before this time, with its zone' },
      'keep-side': { type: 'boolean', help: 'leave the restored copy beside, to take single tables from it' },
      'other-server': { type: 'boolean', help: 'even when it is the backup of another server' },
      undo: { type: 'boolean', help: 'swap back what the last restore set aside' },
      drop: { type: 'string', value: 'NAME', help: 'remove an old database or a copy that --status shows' },
      confirm: { type: 'string', value: 'NAME', help: 'the name that you would be asked to type' },
    },
    examples: [
      '--list',
      '--db kgc --dry-run',
      '--db kgc',
      '--all --time 2026-11-23T02:00:00+01:00',
      '--files',
      '--db kgc --keep-side',
      '--undo',
    ],
  },
  async ({ flags }, log) => {
    const isRestore = (flags.db || flags.files || flags.all) && !flags.undo
    const modes = [flags.list, flags.status, flags.undo, flags.drop, isRestore]
    if (modes.filter(Boolean).length !== 1 || (flags.all && (flags.db || flags.files)) || (flags.run && flags.time))
      throw new Stop(
        'Say one thing to do: --db NAMES, --files or --all (with --run or --time), --list, --status, --undo, --drop NAME.',
        ['npx tsx scripts/restore.ts --help'],
        EXIT.usage,
      )
    const named = [...(flags.db?.split(',') ?? []), ...(flags.files ? [FILES] : [])]
    if (flags.list) {
      const { objectStore, secrets } = loadConfig(flags.env, ['objectStore'])
      log.hide(redactor(secrets))
      const store = await openStore(objectStore)
      const catalog = await log.step('Read the manifests', () => readCatalog(store))
      log.result(table(catalogTable(catalog)))
      for (const { run, why } of catalog.unreadable) log.warn(`${run} cannot be read: ${why}`)
      store.close()
      return EXIT.done
    }
    const isAside = flags.status || flags.undo || flags.drop !== undefined
    const config = loadConfig(flags.env, ['front', 'server', 'notify'])
    const backups = isAside ? undefined : loadConfig(flags.env, ['objectStore', 'opener'])
    const identities = backups ? readIdentities(backups.opener.BACKUP_IDENTITY_FILE) : []
    log.hide(redactor([...config.secrets, ...identities]))
    const [dryRun, keepSide] = [flags['dry-run'], flags['keep-side']]
    const now = new Date()
    const stamp = stampOf(now)
    const actor = currentActor()
    const tell = (text: string) => (dryRun ? Promise.resolve() : notify(log, config.notify.SLACK_WEBHOOK_URL, text))
    const server = await log.step('Connect', () =>
      connect(sshTarget(config.server), dryRun ? (command) => log.result(command.shell) : undefined),
    )
    const locked = <T>(action: string, work: (host: Host) => Promise<T>) =>
      withLock(server, log, { ...actor, action }, { dryRun, wait: waitSeconds(flags) }, work)
    try {
      const found = await log.step('Survey', () => surveyDatabases(server))
      if (!backups) {
        log.result(describeBeside(found))
        const aside = { log, found, stamp, confirmed: flags.confirm, dryRun }
        const { drop: name } = flags
        if (name !== undefined) await locked(`drop of ${name}`, (host) => drop({ ...aside, host }, name))
        const undoIt = (host: Host) =>
          withWorkshop(host, () => undo({ ...aside, host }, named.length > 0 ? named : undefined, config.front))
        if (flags.undo) await locked('undo of a restore', undoIt)
        return EXIT.done
      }
      log.say(describeBeside(found))
      const store = await openStore(backups.objectStore)
      const manifest = pickRun(await log.step('Read the manifests', () => readCatalog(store)), flags)
      const wanted = pickDatabases(manifest, flags.all ? undefined : named.filter((name) => name !== FILES))
      const volumes = pickFiles(manifest, !keepSide && (flags.all || flags.files))
      const what = [...wanted.map(({ name }) => name), ...(volumes ? [FILES] : [])].join(',')
      const [recipients, free] = await Promise.all([recipientsOf(identities), localFree()])
      assertPossible(manifest, wanted, found, {
        recipients,
        localFree: free,
        otherServer: flags['other-server'],
        files: volumes,
      })
      if (!keepSide) {
        const losses = await log.step('Count what would be lost', () => countLosses(server, found, wanted))
        const change = describeChange(server.name, manifest, wanted, losses, stamp, now, volumes)
        if (dryRun) log.result(change)
        else await confirmName(change, what, flags.confirm)
      }
      const title = `Restore of ${what} on ${server.name} from ${manifest.run}`
      try {
        await withDownloads(log, store, wanted, (files) =>
          locked(`restore of ${what}`, async (host) => {
            const restore = { host, log, dryRun, files, identities, wanted, volumes, run: manifest.run, stamp }
            await restoreAll(restore, async (sides) => {
              if (keepSide)
                return log.result(`✅ Restored beside what serves: ${(await keepBeside(restore, sides)).join(', ')}`)
              await tell(`${title} by ${actor.who} swaps now.`)
              const names = found.databases.map(({ name }) => name)
              const away = await putInPlace(restore, sides, names, config.front)
              const done = `✅ ${title} SUCCESS. The applications of ${what} were away for ${away.toFixed(1)} s.`
              await tell(done)
              if (!dryRun) log.result(`${done}\nBack: npx tsx scripts/restore.ts --undo`)
            })
          }),
        )
      } catch (error) {
        await tell(`❌ ${title} FAILED: ${log.clean(messageOf(error)).split('\n')[0]}`)
        throw error
      } finally {
        store.close()
      }
      if (dryRun) log.say('Dry run: nothing was changed.')
      return EXIT.done
    } finally {
      await server.close()
    }
  },
)
