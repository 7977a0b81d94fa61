import { catalogToRestore } from '../backup/catalog.ts'
import { openStore } from '../backup/object-store.ts'
import { confirmName } from '../confirm.ts'
import { EXIT, Stop } from '../errors.ts'
import type { ObjectStoreSettings } from '../settings.ts'
import { assertAsAsked } from './aside.ts'
import { exchange } from './exchange.ts'
import { withDownloads } from './fetch.ts'
import { openEncrypted } from './identity.ts'
import { ago, pickRun } from './plan.ts'
import { withWorkshop } from './server.ts'
import { locked, type Session } from './session.ts'
import { exchangeSingle, makeSingle, type SingleName, singlesOf, undoSingle } from './single.ts'

const LOST: Record<SingleName, string> = {
  queue: 'Jobs that came since are lost, and jobs that were done since run again.',
  grafana: 'Dashboards, users and alerts that were changed since go back.',
}

/**
 * Restores the job queue or Grafana from a backup: made and proved beside what serves, then exchanged while no backup runs.
 * @throws Stop that says what serves now
 */
export async function restorePart(
  session: Session,
  settings: ObjectStoreSettings,
  identities: string[],
  name: SingleName,
  choice: { run: string | undefined; before: Date | undefined },
): Promise<void> {
  const { log, server, config, dryRun, confirmed } = session
  const store = await openStore(settings)
  try {
    const manifest = pickRun(
      await log.step('Read the manifests', () => catalogToRestore(store, log, choice.run)),
      choice,
    )
    const part = singlesOf(manifest).find((one) => one.name === name)
    if (!part)
      throw new Stop(`The run ${manifest.run} has no ${name}.`, ['npx tsx scripts/restore.ts --list'], EXIT.usage)
    const age = ago(Date.now() - Date.parse(manifest.started))
    const change = `On ${server.name} ${name} goes back ${age}, to ${manifest.run}. ${LOST[name]} What serves now is kept until the next such restore; --undo --${name} brings it back.`
    if (dryRun) log.result(change)
    else await confirmName(change, name, confirmed)
    await withDownloads(log, store, [part], ({ [name]: file = '' }) =>
      locked(session, `restore of ${name}`, async (host) => {
        // Around both: what an earlier restore set aside must not go when a backup that runs refuses the exchange.
        const away = await withWorkshop(host, async () => {
          await log.step(`Make ${name} beside`, async () =>
            makeSingle(host, name, await openEncrypted(file, identities)),
          )
          return exchange(host, log, config.front, dryRun, exchangeSingle(name))
        })
        if (!dryRun)
          log.result(`✅ ${name} on ${host.name} is that of ${manifest.run}. It was away for ${away.toFixed(1)} s.`)
      }),
    )
  } finally {
    store.close()
  }
  if (dryRun) log.say('Dry run: nothing was changed.')
}

/** What the last such restore set aside serves again; what serves now is set aside in its turn. */
export async function undoPart(session: Session, name: SingleName): Promise<void> {
  const { log, server, config, dryRun, confirmed } = session
  const back = await undoSingle(server, name)
  if (!back) throw new Stop(`There is nothing to undo: no restore left an old ${name}.`, [], EXIT.usage)
  const question = `On ${server.name} ${name} becomes what it was before it was restored; what serves now is kept in its place.`
  await confirmName(question, name, dryRun ? name : confirmed)
  await locked(session, `undo of a restore of ${name}`, async (host) => {
    assertAsAsked([back.forward], [(await undoSingle(host, name))?.forward ?? ''])
    return withWorkshop(host, () => exchange(host, log, config.front, dryRun, back))
  })
  if (!dryRun) log.result(`✅ ${name} on ${server.name} is what it was before the restore.`)
}
