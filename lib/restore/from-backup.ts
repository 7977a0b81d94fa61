import { catalogToRestore } from '../backup/catalog.ts'
import { openStore } from '../backup/object-store.ts'
import { confirmName } from '../confirm.ts'
import { messageOf } from '../errors.ts'
import type { ObjectStoreSettings } from '../settings.ts'
import { notify } from '../slack.ts'
import { describeAside } from './aside.ts'
import { countLosses } from './beside.ts'
import { localFree, withDownloads } from './fetch.ts'
import { recipientsOf } from './identity.ts'
import { FILES, stampOf } from './names.ts'
import { assertPossible, describeChange, isElsewhere, pickDatabases, pickFiles, pickRun } from './plan.ts'
import { keepBeside, putInPlace, ROLES, restoreAll } from './run.ts'
import { surveyDatabases } from './server.ts'
import { locked, type Session } from './session.ts'

/** What of which backup, and where to. */
export type Choice = {
  run: string | undefined
  before: Date | undefined
  /** Undefined for every database of the backup. */
  databases: string[] | undefined
  files: boolean
  keepSide: boolean
  otherServer: boolean
}

/**
 * Restores databases and files from a backup: everything is downloaded and checked, then restored beside what serves, proved,
 * and swapped.
 * @throws Stop that says what serves now
 */
export async function restoreFromBackup(
  session: Session,
  settings: ObjectStoreSettings,
  identities: string[],
  choice: Choice,
): Promise<void> {
  const { log, server, config, actor, dryRun } = session
  const tell = (text: string) => (dryRun ? Promise.resolve() : notify(log, config.notify.SLACK_WEBHOOK_URL, text))
  const now = new Date()
  const stamp = stampOf(now)
  const found = await log.step('Survey', () => surveyDatabases(server))
  log.say(describeAside(found))
  const store = await openStore(settings)
  try {
    const manifest = pickRun(
      await log.step('Read the manifests', () => catalogToRestore(store, log, choice.run)),
      choice,
    )
    const wanted = pickDatabases(manifest, choice.databases)
    const volumes = pickFiles(manifest, choice.files && !choice.keepSide)
    const what = [...wanted.map(({ name }) => name), ...(volumes ? [FILES] : [])].join(',')
    const [recipients, free] = await Promise.all([recipientsOf(identities), localFree()])
    const hand = { recipients, localFree: free, otherServer: choice.otherServer, files: volumes }
    assertPossible(manifest, wanted, found, hand)
    if (!choice.keepSide) {
      const losses = await log.step('Count what would be lost', () => countLosses(server, found, wanted))
      const change = describeChange(server.name, manifest, wanted, losses, stamp, now, volumes)
      if (dryRun) log.result(change)
      else await confirmName(change, what, session.confirmed)
    }
    const title = `Restore of ${what} on ${server.name} from ${manifest.run}`
    const roles = isElsewhere(manifest, found) && manifest.globals ? [{ ...manifest.globals, name: ROLES }] : []
    await withDownloads(log, store, [...roles, ...wanted], (files) =>
      locked(session, `restore of ${what}`, async (host) => {
        const run = { host, log, dryRun, files, identities, wanted, volumes, run: manifest.run, stamp }
        await restoreAll(run, async (sides) => {
          if (choice.keepSide)
            return log.result(`✅ Restored beside what serves: ${(await keepBeside(run, sides)).join(', ')}`)
          await tell(`${title} by ${actor.who} swaps now.`)
          const names = found.databases.map(({ name }) => name)
          const away = await putInPlace(run, sides, names, config.front)
          const done = `✅ ${title} SUCCESS. The applications of ${what} were away for ${away.toFixed(1)} s.`
          await tell(done)
          if (!dryRun) log.result(`${done}\nBack: npx tsx scripts/restore.ts --undo`)
        })
      }),
    ).catch(async (error) => {
      await tell(`❌ ${title} FAILED: ${log.clean(messageOf(error)).split('\n')[0]}`)
      throw error
    })
  } finally {
    store.close()
  }
  if (dryRun) log.say('Dry run: nothing was changed.')
}
