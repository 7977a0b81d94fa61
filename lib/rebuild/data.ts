import type { Manifest } from '../backup/manifest.ts'
import { compose, startMissing } from '../compose.ts'
import type { Host } from '../host.ts'
import { withLock } from '../lock.ts'
import { login } from '../release/registry.ts'
import { removeFileLeftovers } from '../restore/files.ts'
import { openEncrypted } from '../restore/identity.ts'
import { findBeside, stampOf } from '../restore/names.ts'
import { restoreRoles } from '../restore/roles.ts'
import { psql, removeLeftovers, surveyDatabases, withWorkshop } from '../restore/server.ts'
import { singlesOf } from '../restore/single.ts'
import { dropDatabase } from '../restore/sql.ts'
import { sh } from '../shell.ts'
import { markDone } from './blank.ts'
import { clusterFromLog, leaveLog, startKeeper } from './log.ts'
import { type On, restoreDatabase, restoreFiles, restoreSingle } from './parts.ts'
import type { Rebuild } from './rebuild.ts'

/** The first start of PostgreSQL makes the databases; the images come over the network. */
const START_SECONDS = 900

export type Source = {
  manifest: Manifest
  /** The databases come from the log of point in time recovery, not from the dumps. */
  fromLog: boolean
  /** What was restored before, by its name. */
  done: string[]
  /** The downloaded parts, still encrypted. */
  files: Record<string, string>
}

/** Everything that has state, while none of the applications runs. What was done already is left alone. */
export async function restoreData(rebuild: Rebuild, server: Host, source: Source): Promise<void> {
  const { log, config, actor } = rebuild
  const { fromLog } = source
  const locked = (work: (host: Host) => Promise<unknown>) =>
    withLock(server, log, { ...actor, action: 'rebuild' }, { dryRun: false, wait: 0 }, work)
  await locked(async (host) => {
    await log.step('Start PostgreSQL and the backup-service', async () => {
      await host.write(login(config.registry), { input: config.registry.REGISTRY_PASSWORD, timeout: 40 })
      if (!fromLog) await host.write(leaveLog)
      await host.write(startMissing(['postgres', 'backup-service'], START_SECONDS), { timeout: START_SECONDS + 60 })
      if (fromLog) await host.write(startKeeper, { timeout: START_SECONDS })
      // Their volumes, as Compose names and labels them.
      await host.write(compose(sh`create --no-recreate redis-queue grafana`), { timeout: START_SECONDS })
    })
    if (!fromLog) await restoreDumps(rebuild, host, source)
  })
  if (fromLog) await clusterFromLog(rebuild, server, source.manifest.run)
  await locked((host) => restoreVolumes(rebuild, host, source))
}

/** Does what was not done yet, and remembers that it was. */
const onceOn = (host: Host, done: string[]) => async (name: string, work: () => Promise<unknown>) => {
  if (done.includes(name)) return
  await work()
  await host.write(markDone(name))
}

async function restoreDumps(
  { log, identities }: Rebuild,
  host: Host,
  { manifest, done, files }: Source,
): Promise<void> {
  const once = onceOn(host, done)
  const open = (name: string) => openEncrypted(files[name] ?? '', identities)
  const found = await log.step('Remove what a dead run left', async () => {
    const names = (await surveyDatabases(host)).databases.map(({ name }) => name)
    const empty = findBeside(names).filter(({ kind }) => kind === 'old')
    await host.write(removeLeftovers(names), { timeout: 300 })
    await host.write(psql(empty.map(({ name }) => dropDatabase(name)).join('\n')))
    return surveyDatabases(host)
  })
  const on: On = { host, log, stamp: stampOf(new Date()) }
  await withWorkshop(host, async () => {
    if (manifest.globals)
      await once('roles', () => log.step('Restore roles', async () => restoreRoles(host, await open('roles'))))
    for (const one of manifest.databases)
      await once(one.name, () => restoreDatabase(on, found, one, () => open(one.name)))
  })
}

async function restoreVolumes({ log, identities }: Rebuild, host: Host, { manifest, done, files }: Source) {
  const once = onceOn(host, done)
  const open = (name: string) => openEncrypted(files[name] ?? '', identities)
  const on: On = { host, log, stamp: stampOf(new Date()) }
  await host.write(removeFileLeftovers, { timeout: 300 })
  const { files: volumes } = manifest
  if (volumes) await once('files', () => restoreFiles(on, volumes))
  for (const { name } of singlesOf(manifest))
    await once(name, () => log.step(`Restore ${name}`, async () => restoreSingle(on, name, await open(name))))
}
