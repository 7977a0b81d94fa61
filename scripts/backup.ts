import { gigabytes, showCatalog } from '../lib/backup/catalog.ts'
import { takeBackupLock } from '../lib/backup/lock.ts'
import type { Manifest } from '../lib/backup/manifest.ts'
import { openStore } from '../lib/backup/object-store.ts'
import { describeProgress } from '../lib/backup/progress.ts'
import { proveRestore } from '../lib/backup/prove.ts'
import { prune } from '../lib/backup/prune.ts'
import { backUpThere, LONGEST_BACKUP_SECONDS, progressLine } from '../lib/backup/remote.ts'
import { backUp, newRun, preflight, type Service } from '../lib/backup/service.ts'
import { isDue, isRestoreTestDue, parts, readState, shrunkParts, sizesOf, writeState } from '../lib/backup/state.ts'
import { sweep } from '../lib/backup/sweep.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook } from '../lib/cli.ts'
import { loadConfig, sshTarget } from '../lib/config.ts'
import { EXIT, type ExitCode, messageOf, Stop } from '../lib/errors.ts'
import { type Log, seconds } from '../lib/log.ts'
import { redactor } from '../lib/redact.ts'
import { notify } from '../lib/slack.ts'
import { connect } from '../lib/ssh.ts'

/** Set in the image of the backup-service: the program runs where the data is. */
const inService = process.env.BACKUP_SERVICE === 'yes'

await runbook(
  {
    name: 'backup',
    summary:
      'Backs up databases, files and secrets to the object store, and reads back what was stored. Runs in the backup-service at 02:00; by hand from here.',
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      list: { type: 'boolean', help: 'what there is, from the object store alone' },
      verify: { type: 'boolean', help: 'restore the new backup into a throwaway server as well (else once a week)' },
      'if-due': { type: 'boolean', help: 'only when there is none since 02:00 (what cron asks for)' },
      progress: { type: 'boolean', help: 'say how far it is in lines of JSON on stdout' },
    },
    examples: ['', '--list', '--dry-run', '--verify'],
  },
  async ({ flags }, log) => {
    if (flags.list) return list(log, flags.env)
    if (!inService) {
      const config = loadConfig(flags.env, ['server'])
      log.hide(redactor(config.secrets))
      const host = await log.step('Connect', () => connect(sshTarget(config.server)))
      const passed = (['dry-run', 'verify', 'if-due'] as const).filter((name) => flags[name]).map((name) => `--${name}`)
      return backUpThere(log, host, passed).finally(() => host.close())
    }
    const state = readState()
    if (flags['if-due'] && !isDue(state, new Date())) return EXIT.done
    const config = loadConfig(flags.env, ['objectStore', 'backup', 'notify'])
    log.hide(redactor([...config.secrets, process.env.RESTIC_PASSWORD ?? '', process.env.REDISCLI_AUTH ?? '']))
    const store = await openStore(config.objectStore, config.backup.BACKUP_LOCK_DAYS)
    const onProgress: Service['onProgress'] = (progress) =>
      flags.progress ? log.result(progressLine(progress)) : log.progress(describeProgress(progress))
    const service: Service = { log, config, store, signal: stopSignal(), started: new Date(), onProgress }
    const tell = (text: string) => notify(log, config.notify.SLACK_WEBHOOK_URL, text)

    try {
      const outcome = await run(service, { dryRun: flags['dry-run'], verify: flags.verify })
      if (!outcome) return EXIT.done
      const { manifest, problems } = outcome
      const took = (Date.now() - service.started.getTime()) / 1000
      const size = parts(manifest).reduce((all, [, { storedBytes }]) => all + storedBytes, 0)
      const line = `${manifest.run}: ${gigabytes(size)} stored in ${seconds(took)}, read back whole`
      if (problems.length > 0) throw new Stop([`${manifest.run} was stored, but:`, ...problems].join('\n  '))
      await tell(`✅ Backup ${line}${outcome.restored ? ', restored as a test' : ''}.`)
      log.result(`✅ Backup ${line}${outcome.restored ? ', restored into a throwaway server with every row' : ''}.`)
      return EXIT.done
    } catch (error) {
      if (error instanceof Stop && (error.code === EXIT.locked || flags['dry-run'])) throw error
      const now = readState()
      const reason = log.clean(messageOf(error))
      const lastGood = now.lastGood ? `The last good backup began ${now.lastGood}.` : 'There is no good backup yet.'
      const lastRun = {
        ...{ at: service.started.toISOString(), ok: false, reason },
        seconds: (Date.now() - service.started.getTime()) / 1000,
      }
      // A night's failure is told once, not at every try of the hours after it.
      if (!(flags['if-due'] && now.lastRun?.ok === false && now.lastRun.reason === reason))
        await tell(`❌ Backup FAILED at "${log.current}": ${reason}\n${lastGood}`)
      // On a full disk it cannot be written.
      try {
        writeState({ ...now, lastRun })
      } catch (failure) {
        log.warn(messageOf(failure))
      }
      throw error instanceof Stop ? error.withServing(lastGood) : error
    } finally {
      store.close()
    }
  },
)

type Outcome = { manifest: Manifest; problems: string[]; restored: boolean }

/** @returns nothing after a dry run */
async function run(
  service: Service,
  { dryRun, verify }: { dryRun: boolean; verify: boolean },
): Promise<Outcome | undefined> {
  const { log, config, started } = service
  const found = await log.step('Preflight', () => preflight(service))
  const weekly = isRestoreTestDue(readState(), config.backup.BACKUP_VERIFY_DAYS, started)
  if (dryRun) {
    log.say(
      `Would back up to ${service.store.settings.S3_BUCKET} at ${service.store.settings.S3_ENDPOINT}, ${verify || weekly ? 'with' : 'without'} a restore test.`,
    )
    await log.step('What would be removed', () => prune(service, true, weekly))
    log.say('Dry run: nothing was changed.')
    return undefined
  }
  const backup = await newRun(service, found)
  const unlock = await log.step('Lock', () => takeBackupLock(backup.id))
  try {
    const ours = readState().begun ?? []
    writeState({ ...readState(), begun: [...ours, backup.id] })
    const left = await log.step('Sweep', () => sweep(service, ours), 'whole')
    const manifest = await backUp(service, found, backup, ours.length > 0)
    const problems = manifest.failed.map(({ part, error }) => `${part}: ${error}`)
    const before = readState()
    const shrunk = shrunkParts(before.sizes, sizesOf(manifest))
    if (shrunk.length > 0) log.warn(`Much smaller than last time, so nothing old is removed: ${shrunk.join(', ')}.`)
    const at = started.toISOString()
    const lastRun = { at, ok: manifest.complete, seconds: (Date.now() - started.getTime()) / 1000 }
    if (!manifest.complete) return { manifest, problems, restored: false }
    writeState({ ...before, lastMade: at, lastRun, sizes: sizesOf(manifest) })
    const restored = verify || weekly
    if (restored) {
      await proveRestore(service, backup, manifest)
      writeState({ ...readState(), lastRestored: new Date().toISOString() })
    }
    writeState({ ...readState(), lastGood: at })
    if (shrunk.length === 0) {
      const allowed = await log.step('Remove old backups', () => prune(service, false, weekly), 'whole')
      writeState({ ...readState(), pruneDenied: !allowed })
    }
    writeState({ ...readState(), begun: left })
    return { manifest, problems, restored }
  } finally {
    await unlock()
  }
}

async function list(log: Log, env: string | undefined): Promise<ExitCode> {
  const { objectStore, secrets } = loadConfig(env, ['objectStore'])
  log.hide(redactor(secrets))
  await showCatalog(log, objectStore)
  return EXIT.done
}

/** Aborted when this run is told to end, or has taken too long: then it leaves nothing half done. */
function stopSignal(): AbortSignal {
  const stop = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => stop.abort())
  return AbortSignal.any([stop.signal, AbortSignal.timeout(LONGEST_BACKUP_SECONDS * 1000)])
}
