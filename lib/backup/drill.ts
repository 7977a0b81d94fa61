import { statfsSync } from 'node:fs'
import { Stop } from '../errors.ts'
import { type Command, script, sh } from '../shell.ts'
import { connectTo, countRows } from './databases.ts'
import { BACKUP_STATE } from './lock.ts'
import { Damaged, type DatabaseBackup, type Manifest } from './manifest.ts'
import { ProgramFailed, text } from './pipeline.ts'
import { type BackupRun, readBack } from './store.ts'

const SCRATCH = `${BACKUP_STATE}/scratch`
/** Of the largest database: its files, their write-ahead log, and sorting for indexes. */
const ROOM = 1.5

/** Postgres refuses to run as root. */
const asPostgres = (command: Command) =>
  sh`setpriv --reuid=postgres --regid=postgres --clear-groups bash -ec ${command.shell}`

/** A server that listens on nothing but a socket in its own folder, and need not survive a power cut. */
const startServer = script(`
install -d -m 700 -o postgres -g postgres ${SCRATCH}
${
  asPostgres(
    script(`
cd ${SCRATCH}
if [ -d data ]; then pg_ctl -D data -m immediate -w stop > /dev/null 2>&1 || true; rm -rf data; fi
initdb -D data --username=postgres --encoding=UTF8 --locale=C.UTF-8 --auth=trust --no-sync > /dev/null
pg_ctl -D data -w -t 60 -l server.log start -o "-c listen_addresses= -c unix_socket_directories=${SCRATCH} -c fsync=off -c full_page_writes=off -c wal_level=minimal -c max_wal_senders=0 -c autovacuum=off -c shared_preload_libraries=pg_stat_statements" > /dev/null`),
  ).shell
}`)

const stopServer = script(`
${asPostgres(script(`cd ${SCRATCH} && { pg_ctl -D data -m immediate -w stop > /dev/null 2>&1 || true; } && rm -rf data server.log`)).shell}`)

const createDatabase = ({ name, owner, encoding, collate, ctype, localeProvider, icuLocale }: DatabaseBackup) =>
  sh`createdb --host=${SCRATCH} --username=postgres --template=template0 --owner=${owner} --encoding=${encoding} --lc-collate=${collate} --lc-ctype=${ctype} --locale-provider=${localeProvider} ${icuLocale ? ['--icu-locale', icuLocale] : []} ${name}`

/** @throws Stop when the disk has no room for the test */
export function assertRoom(manifest: Manifest): void {
  const largest = Math.max(...manifest.databases.map(({ size }) => size))
  const { bavail, bsize } = statfsSync(BACKUP_STATE)
  if (bavail * bsize < largest * ROOM)
    throw new Stop(`The restore test needs ${Math.ceil((largest * ROOM) / 1e9)} GB free below ${BACKUP_STATE}.`)
}

/**
 * Restores what was stored, fetched from the object store, into a throwaway server of the same version with the same
 * extensions, one database after another, and counts every row.
 * @returns the databases that came up as the manifest says
 * @throws Damaged when the backup is why one did not
 */
export async function restoreTest(run: BackupRun, manifest: Manifest): Promise<string[]> {
  const { signal } = run
  const on = (what: string) => ({ what, signal })
  await text(startServer, on('Starting the throwaway server'))
  try {
    const roles = sh`psql --no-psqlrc --quiet --host=${SCRATCH} --username=postgres --dbname=postgres`
    // The first role in it is the one that the server was made with.
    if (manifest.globals) await readBack(run, manifest.globals, roles, on('Restoring the roles')).catch(blame)
    for (const database of manifest.databases) {
      const { name } = database
      await text(createDatabase(database), on(`Creating ${name}`))
      const reader = sh`pg_restore --exit-on-error --host=${SCRATCH} --username=postgres --dbname=${name}`
      await readBack(run, database, reader, on(`Restoring ${name}`)).catch(blame)
      await compareRows(database, signal)
      await text(sh`dropdb --host=${SCRATCH} --username=postgres ${name}`, on(`Dropping ${name}`))
    }
    return manifest.databases.map(({ name }) => name)
  } finally {
    // Also when the run was stopped: what it wrote is all that the databases hold.
    await text(stopServer, { what: 'Removing the throwaway server', signal: new AbortController().signal })
  }
}

/** What programs say, here or in the throwaway server, when this server is to blame. */
const OF_THIS_SERVER =
  /was ended by|exit code 137|No space left on device|out of memory|Cannot allocate memory|server closed the connection|terminating connection|connection to server/i

/** Of a program that fails on what was stored, the backup is to blame; of a connection to the store that breaks, it is not. */
export function blame(error: unknown): never {
  if (error instanceof ProgramFailed && !OF_THIS_SERVER.test(error.message)) throw new Damaged(error.message)
  throw error
}

async function compareRows({ name, rows }: DatabaseBackup, signal: AbortSignal): Promise<void> {
  const client = await connectTo(name, { host: SCRATCH, user: 'postgres', signal })
  const found = await countRows(client).finally(() => client.end())
  const wrong = [...new Set([...Object.keys(rows), ...Object.keys(found)])].filter(
    (table) => rows[table] !== found[table],
  )
  if (wrong.length === 0) return
  const [table = ''] = wrong
  throw new Damaged(
    `Restored, ${name} is not what was backed up: ${table} has ${found[table] ?? 'no'} rows instead of ${rows[table] ?? 'none'}${wrong.length > 1 ? `, and ${wrong.length - 1} more tables differ` : ''}.`,
  )
}
