import type { Readable } from 'node:stream'
import { FILE_PATHS } from '../backup/files.ts'
import type { DatabaseBackup, Manifest } from '../backup/manifest.ts'
import type { Host } from '../host.ts'
import type { Log } from '../log.ts'
import { restoreBeside } from '../restore/beside.ts'
import { dropFiles, exchangeFiles, inVolumes, restoredFolder, restoreFilesBeside } from '../restore/files.ts'
import { besideName, FILES } from '../restore/names.ts'
import { type DatabaseServer, psql } from '../restore/server.ts'
import { exchangeSingle, makeSingle, type SingleName } from '../restore/single.ts'
import { dropDatabase, swapSql } from '../restore/sql.ts'
import { chain, script } from '../shell.ts'

export type On = { host: Host; log: Log; stamp: string }

/**
 * Restores a database, proves it as every restore does, and puts it in the place of the empty one that init-db.sh made. No
 * application runs yet, so nobody sees the change.
 */
export async function restoreDatabase(
  { host, log, stamp }: On,
  found: DatabaseServer,
  record: DatabaseBackup,
  dump: () => Promise<Readable>,
): Promise<void> {
  const { name } = record
  const [side, empty] = [besideName(name, 'restore', stamp), besideName(name, 'old', stamp)]
  // Its owner, grants and settings are those that were backed up: the empty one has none of its own.
  await restoreBeside({ host, log, found: { ...found, databases: [] }, dryRun: false }, record, side, dump)
  const isThere = found.databases.some((one) => one.name === name)
  const swap = { database: name, next: side, aside: isThere ? empty : undefined, why: 'empty' }
  await log.step(`${side} becomes ${name}`, () => host.write(psql(`${swapSql([swap])}\n${dropDatabase(empty)}`)))
}

/** Restores the files, compared with what was backed up, into the new server's volumes. */
export async function restoreFiles({ host, log, stamp }: On, files: NonNullable<Manifest['files']>): Promise<void> {
  await restoreFilesBeside(host, log, files, stamp)
  // A new volume is root's until something is in it; then it stays as it is.
  const owners = FILE_PATHS.map(
    (path) =>
      `cd ${path} && chown --reference=${restoredFolder(stamp)} . && chmod --reference=${restoredFolder(stamp)} .`,
  ).join('\n')
  await log.step('Files in their places', () =>
    host.write(
      chain(
        script(inVolumes(owners)),
        script(exchangeFiles(stamp).forward),
        dropFiles(besideName(FILES, 'old', stamp)),
      ),
      {
        timeout: 600,
      },
    ),
  )
}

/** Jobs or dashboards, into a volume that nothing uses yet. */
export async function restoreSingle({ host }: On, name: SingleName, copy: Readable): Promise<void> {
  await makeSingle(host, name, copy)
  await host.write(script(exchangeSingle(name).forward))
}
