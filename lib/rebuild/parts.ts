import type { Readable } from 'node:stream'
import { FILE_PATHS } from '../backup/files.ts'
import type { DatabaseBackup, Manifest } from '../backup/manifest.ts'
import type { Host } from '../host.ts'
import type { Log } from '../log.ts'
import { restoreBeside } from '../restore/beside.ts'
import { dropFiles, exchangeFiles, inVolumes, restoredFolder, restoreFilesBeside } from '../restore/files.ts'
import { besideName } from '../restore/names.ts'
import { BACKUP_SERVICE, type DatabaseServer, inWorkshop, psql } from '../restore/server.ts'
import { dropDatabase, swapSql } from '../restore/sql.ts'
import { type Command, chain, quote, script } from '../shell.ts'

/** 1 GB of jobs (REDIS_QUEUE_MAXMEMORY) over a slow line. */
const LONGEST_SECONDS = 3600
export type On = { host: Host; log: Log; stamp: string }

/**
 * Roles are made where they are missing; all get the passwords, rights and settings that they had. What pg_dumpall writes
 * is made so that it can be run again.
 */
export const restoreRoles = ({ host }: On, dump: Readable): Promise<string> =>
  host.write(
    inWorkshop(
      `zstd -dcq | sed -E ${quote(String.raw`s/^CREATE ROLE (.*);$/DO $role$ BEGIN CREATE ROLE \1; EXCEPTION WHEN duplicate_object THEN NULL; END $role$;/`)} | psql -XqAt -v ON_ERROR_STOP=1 -d postgres > /dev/null`,
    ),
    { input: dump, timeout: 300 },
  )

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
    host.write(chain(script(inVolumes(owners)), script(exchangeFiles(stamp).forward), dropFiles(stamp)), {
      timeout: 600,
    }),
  )
}

/** A container of the backup's image with one volume of a service that does not run. It reads what zstd packed. */
const intoVolume = (volume: string, text: string): Command =>
  script(
    `docker run --rm -i --network none --volume ${volume}:/volume --workdir /volume --cap-drop ALL --cap-add CHOWN --cap-add DAC_OVERRIDE --security-opt no-new-privileges --entrypoint bash "$(docker inspect -f '{{.Image}}' ${BACKUP_SERVICE})" -eo pipefail -c ${quote(text)}`,
  )

/**
 * The jobs. With an append-only file switched on, Redis does not look at a dump.rdb: an append-only file is made, of which
 * the copy is the base (redis.io, "Redis persistence", Multi Part AOF). redis-cli leaves the 40 characters that mark the end
 * of a transfer after a copy that it writes into a pipe (7.0, seen); Redis would take them for a damaged end.
 */
export const restoreQueue = ({ host }: On, copy: Readable): Promise<string> =>
  host.write(
    intoVolume(
      'kgc_redis-queue-data',
      `rm -rf .next && mkdir .next
zstd -dcq > .next/appendonly.aof.1.base.rdb
if tail -c 40 .next/appendonly.aof.1.base.rdb | LC_ALL=C grep -qxE '[0-9a-f]{40}'; then truncate -s -40 .next/appendonly.aof.1.base.rdb; fi
redis-check-rdb .next/appendonly.aof.1.base.rdb > /dev/null
echo 'file appendonly.aof.1.base.rdb seq 1 type b' > .next/appendonly.aof.manifest
chown -R 999:1000 . && rm -rf appendonlydir && mv .next appendonlydir`,
    ),
    { input: copy, timeout: LONGEST_SECONDS },
  )

/** Dashboards, users and data sources. */
export const restoreGrafana = ({ host }: On, copy: Readable): Promise<string> =>
  host.write(
    intoVolume(
      'kgc_grafana-data',
      `rm -f .next.db && zstd -dcq > .next.db
[ "$(sqlite3 .next.db 'PRAGMA integrity_check')" = ok ]
chmod 640 .next.db && chown 472:0 . .next.db && mv .next.db grafana.db`,
    ),
    { input: copy, timeout: LONGEST_SECONDS },
  )
