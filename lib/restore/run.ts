import type { DatabaseBackup, Manifest } from '../backup/manifest.ts'
import { messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import type { Log } from '../log.ts'
import type { Front } from '../settings.ts'
import { chain } from '../shell.ts'
import { restoreBeside } from './beside.ts'
import { unlessHalfDone } from './cut-off.ts'
import { exchange } from './exchange.ts'
import { exchangeFiles, removeFileLeftovers, restoreFilesBeside } from './files.ts'
import { openEncrypted } from './identity.ts'
import { besideName } from './names.ts'
import { restoreMissingRoles } from './roles.ts'
import { assertWorkshop, keepCopy, removeLeftovers, surveyDatabases, withWorkshop } from './server.ts'
import { exchangeDatabases, together } from './swap.ts'

/** Where the dump of the roles is among the downloaded files, when they are to be restored. */
export const ROLES = 'roles'

export type Restore = {
  host: Host
  log: Log
  dryRun: boolean
  /** The downloaded dump of each database, still encrypted. */
  files: Record<string, string>
  identities: string[]
  wanted: DatabaseBackup[]
  /** Undefined when the files are not to be restored. */
  volumes: Manifest['files'] | undefined
  /** The run that it is from. */
  run: string
  /** Part of the names that this restore gives. */
  stamp: string
}

/**
 * Restores databases beside those that serve, proves them, and gives their names to what comes then; no backup runs
 * meanwhile. What dead runs left is removed first; when this one fails, what it made is removed.
 */
export async function restoreAll(restore: Restore, then: (sides: Record<string, string>) => Promise<void>) {
  const { host, log, dryRun, files, identities, wanted, volumes, stamp } = restore
  const found = await log.step('Remove what dead runs left', async () => {
    const now = await surveyDatabases(host)
    await host.write(removeLeftovers(now.databases.map(({ name }) => name)), { timeout: 300 })
    await host.write(removeFileLeftovers, { timeout: 300 })
    return now
  })
  const sides = Object.fromEntries(wanted.map(({ name }) => [name, besideName(name, 'restore', stamp)]))
  let isProven = false
  try {
    await withWorkshop(host, async () => {
      const roles = files[ROLES]
      if (roles)
        await log.step('Roles that are missing', async () =>
          restoreMissingRoles(host, await openEncrypted(roles, identities)),
        )
      // A new cluster's databases have nothing of their own to keep, and get what the backup's had.
      const keeps = roles ? { ...found, databases: found.databases.filter(({ isPlain }) => !isPlain) } : found
      for (const one of wanted)
        await restoreBeside({ host, log, found: keeps, dryRun }, one, sides[one.name] ?? '', () =>
          openEncrypted(files[one.name] ?? '', identities),
        )
      if (volumes) await restoreFilesBeside(host, log, volumes, stamp)
      await assertWorkshop(host)
      isProven = true
      await then(sides)
    })
  } catch (error) {
    await log
      .step(
        'Remove what was made',
        () =>
          host.write(unlessHalfDone(chain(removeLeftovers(Object.values(sides)), removeFileLeftovers)), {
            timeout: 300,
          }),
        'always',
      )
      .catch((failure) => log.warn(`The next restore removes it. ${messageOf(failure)}`))
    if (isProven || !(error instanceof Stop)) throw error
    throw error.withServing('What served before serves; nothing of it was touched.')
  }
}

/** Puts what was restored in the place of what serves. @returns seconds that the applications were away */
export const putInPlace = (
  { host, log, dryRun, run, stamp, wanted, volumes }: Restore,
  sides: Record<string, string>,
  serving: string[],
  front: Front,
): Promise<number> =>
  exchange(
    host,
    log,
    front,
    dryRun,
    together([
      ...(wanted.length > 0
        ? [
            exchangeDatabases(
              wanted.map(({ name }) => ({
                database: name,
                next: sides[name],
                aside: serving.includes(name) ? besideName(name, 'old', stamp) : undefined,
                why: `served until ${run} was restored`,
              })),
            ),
          ]
        : []),
      ...(volumes ? [exchangeFiles(stamp)] : []),
    ]),
  )

/** Keeps what was restored beside what serves, to copy from. @returns the names */
export async function keepBeside(
  { host, wanted, run, stamp }: Restore,
  sides: Record<string, string>,
): Promise<string[]> {
  const copies = wanted.map(({ name }) => besideName(name, 'copy', stamp))
  for (const [index, { name, at }] of wanted.entries())
    await host.write(keepCopy(sides[name] ?? '', copies[index] ?? '', `${name} at ${at}, from ${run}`))
  return copies
}
