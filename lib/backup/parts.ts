import { RECORDS } from '../layout.ts'
import { type Command, script, sh } from '../shell.ts'
import type { Snapshot } from './databases.ts'
import { countRows } from './databases.ts'
import { SERVER_FOLDER } from './lock.ts'
import type { DatabaseBackup, Manifest, Stored } from './manifest.ts'
import { parts } from './state.ts'
import { type BackupRun, readBack, store } from './store.ts'

/** A migration that holds a table for longer makes the dump fail, rather than wait with everything queued behind it. */
const LOCK_WAIT = '60s'
/** pg_dump's text is about this much of the database's size, and compressed this much of that (measured mixes: 0.75, 0.2). */
const EXPECTED_STORED = 0.2

/** -Z0: zstd compresses, after it. Format 15 of every server of that version, read by pg_restore of it and of later ones. */
export const dumpCommand = (name: string, snapshot: string): Command =>
  sh`pg_dump --format=custom --compress=0 --no-password ${`--snapshot=${snapshot}`} ${`--lock-wait-timeout=${LOCK_WAIT}`} --dbname=${name}`

const objectOf = (database: string) => `${database}.dump.zst.age`

/** The dump of a snapshot, and how large it may become: all of the database, where nothing compresses. */
export const dumpOf = ({ name, about }: Pick<Snapshot, 'name' | 'about'>) => ({
  object: objectOf(name),
  programs: dumpCommand(name, about.snapshot),
  source: { what: `The dump of ${name}`, expected: about.size },
})

/** Counts the rows of a snapshot and dumps it, then lets it go. */
export async function backUpDatabase(run: BackupRun, snapshot: Snapshot): Promise<DatabaseBackup> {
  const { client, about } = snapshot
  try {
    const rows = await countRows(client)
    const { object, programs, source } = dumpOf(snapshot)
    return { ...(await store(run, object, programs, source)), ...about, rows }
  } finally {
    await client.end().catch(() => {})
  }
}

/**
 * What each object will take in the store, in bytes: as much as in the backup before; a database that has none, a part of
 * its size.
 */
export function expectedSizes(last: Manifest | undefined, sizes: Record<string, number>): Record<string, number> {
  const before = last ? parts(last).map(([, { key, storedBytes }]) => [key.split('/').pop() ?? key, storedBytes]) : []
  const first = Object.entries(sizes).map(([name, size]) => [objectOf(name), size * EXPECTED_STORED])
  return Object.fromEntries([...first, ...before])
}

/** Reads the dump from front to end, table of contents and data, and restores nothing. */
export const readDump = (run: BackupRun, dump: DatabaseBackup): Promise<DatabaseBackup> =>
  readBack(run, dump, sh`pg_restore --file=/dev/null`, {
    what: `Reading the dump of ${dump.name}`,
  }) as Promise<DatabaseBackup>

export const backUpGlobals = (run: BackupRun): Promise<Stored> =>
  store(run, 'globals.sql.zst.age', sh`pg_dumpall --globals-only --no-password --database=postgres`, {
    what: 'The dump of the roles',
  })

/** With the record of releases, so that it is known from the object store alone which one served. */
export const backUpSecrets = (run: BackupRun): Promise<Stored> =>
  store(
    run,
    'secrets.tar.zst.age',
    script(`cd ${SERVER_FOLDER} && tar --create .env secrets certs $(ls ${RECORDS} 2> /dev/null)`),
    { what: "The tar of the server's secrets" },
  )

/** For what a program wants as a file; emptied at the start of every run. */
export const SPOOL = '/var/lib/backup/spool'

/** REDISCLI_AUTH comes from the environment. A copy of memory: the append-only file must never be copied while it is written. */
export const backUpRedis = (run: BackupRun): Promise<Stored> =>
  store(run, 'redis-queue.rdb.zst.age', sh`redis-cli -h redis-queue --user backup --no-auth-warning --rdb -`, {
    what: 'The copy of the job queue',
  })

/** SQLite's own backup: a copy of the file could be half of a transaction. */
export const backUpGrafana = (run: BackupRun): Promise<Stored> =>
  store(
    run,
    'grafana.db.zst.age',
    script(
      `rm -f ${SPOOL}/grafana.db && sqlite3 -readonly /data/grafana-data/grafana.db '.backup ${SPOOL}/grafana.db' && cat ${SPOOL}/grafana.db`,
    ),
    { what: "The copy of Grafana's database" },
  )

const CHECK_RDB = script(`cat > ${SPOOL}/check.rdb && redis-check-rdb ${SPOOL}/check.rdb >&2 && rm ${SPOOL}/check.rdb`)
const CHECK_SQLITE = script(
  `cat > ${SPOOL}/check.db && sqlite3 ${SPOOL}/check.db 'PRAGMA integrity_check' | grep -qx ok && rm ${SPOOL}/check.db`,
)
const READERS: Record<string, Command> = {
  redis: CHECK_RDB,
  grafana: CHECK_SQLITE,
  secrets: sh`tar --list`,
  globals: sh`grep -q ${'PostgreSQL database cluster dump complete'}`,
}

/** Reads a part to its end, by what knows its format. */
export const readPart = (run: BackupRun, name: keyof typeof READERS, part: Stored): Promise<Stored> =>
  readBack(run, part, READERS[name] ?? sh`cat`, { what: `Reading ${part.key}` })
