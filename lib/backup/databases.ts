import type { Client } from 'pg'
import { messageOf, Stop } from '../errors.ts'
import type { DatabaseBackup, Manifest } from './manifest.ts'

/** Every one is a part of the system, so a backup without one of them is not complete. */
export const DATABASES = ['kgc', 'twenty', 'chatwoot', 'horilla'] as const

/** An open transaction that shows a database as it was at one moment, also to pg_dump. */
export type Snapshot = {
  name: string
  client: Client
  about: Omit<DatabaseBackup, keyof import('./manifest.ts').Stored | 'rows'>
}

/** Only what no transaction may be without: a firewall that forgets idle connections must not end it. */
const SESSION = {
  application_name: 'kgc-backup',
  keepAlive: true,
  keepAliveInitialDelayMillis: 60_000,
  connectionTimeoutMillis: 10_000,
  statement_timeout: 0,
  // A migration holds its tables for longer than a count may wait with everything queued behind it.
  lock_timeout: 60_000,
  idle_in_transaction_session_timeout: 0,
}

/**
 * PGHOST, PGUSER and PGPASSWORD say where and who.
 * @param signal ends the connection, and with it what it waits for
 * @throws Stop when the database does not answer within 10 s, or refuses
 */
export async function connectTo(
  database: string,
  { signal, ...server }: { host?: string; user?: string; signal?: AbortSignal } = {},
): Promise<Client> {
  signal?.throwIfAborted()
  const { default: pg } = await import('pg')
  const client = new pg.Client({ ...SESSION, ...server, database })
  // A connection that breaks shows at the next query; without a listener it would end the process.
  client.on('error', () => {})
  signal?.addEventListener('abort', () => void client.end().catch(() => {}), { once: true })
  try {
    await client.connect()
  } catch (error) {
    throw new Stop(
      `Database ${database} at ${server.host ?? process.env.PGHOST} cannot be reached: ${messageOf(error)}.`,
      ['docker ps --filter name=kgc-postgres'],
    )
  }
  return client
}

/**
 * Takes the snapshots of all databases together: within milliseconds (0.3 to 3 measured), but not at one instant, which
 * only a copy of the whole cluster has.
 */
export async function takeSnapshots(names: readonly string[], signal: AbortSignal): Promise<Snapshot[]> {
  const clients: Client[] = []
  try {
    for (const name of names) {
      const client = await connectTo(name, { signal })
      clients.push(client)
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY')
    }
    const exported = await Promise.all(
      clients.map((client) =>
        client.query('SELECT pg_export_snapshot() AS snapshot, pg_current_wal_lsn() AS lsn, clock_timestamp() AS at'),
      ),
    )
    return await Promise.all(
      clients.map(async (client, index) => ({
        name: names[index] ?? '',
        client,
        about: { ...snapshotOf(exported[index]?.rows[0]), ...(await describe(client)) },
      })),
    )
  } catch (error) {
    await closeAll(clients)
    throw error
  }
}

export const closeAll = (clients: Client[]) => Promise.allSettled(clients.map((client) => client.end()))

const snapshotOf = ({ snapshot, lsn, at }: { snapshot: string; lsn: string; at: Date }) => ({
  snapshot,
  lsn,
  at: at.toISOString(),
})

/** What belongs to a database and is not in a dump of it. */
async function describe(client: Client): Promise<Omit<Snapshot['about'], 'snapshot' | 'lsn' | 'at'>> {
  const { rows } = await client.query(`
    SELECT datname AS name, pg_database_size(oid)::float8 AS size, pg_get_userbyid(datdba) AS owner,
           datacl::text[] AS acl, pg_encoding_to_char(encoding) AS encoding, datcollate AS collate, datctype AS ctype,
           CASE datlocprovider WHEN 'i' THEN 'icu' ELSE 'libc' END AS "localeProvider", daticulocale AS "icuLocale",
           datcollversion AS "collationVersion", datconnlimit AS "connectionLimit",
           (SELECT coalesce(json_agg(json_build_object('role', r.rolname, 'setting', s.setting)), '[]')
              FROM pg_db_role_setting d CROSS JOIN unnest(d.setconfig) s(setting) LEFT JOIN pg_roles r ON r.oid = d.setrole
             WHERE d.setdatabase = pg_database.oid) AS settings,
           (SELECT coalesce(json_object_agg(extname, extversion), '{}') FROM pg_extension) AS extensions
      FROM pg_database WHERE datname = current_database()`)
  return rows[0]
}

/** Tables whose rows a dump has: not those of extensions, not views; partitions each for itself. */
const TABLES = `
  SELECT format('%I.%I', nspname, relname) AS "table"
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
   WHERE relkind = 'r' AND relpersistence <> 't' AND nspname <> 'information_schema' AND nspname !~ '^pg_'
     AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
   ORDER BY 1`

/** Rows of every table itself, without those of tables that inherit from it. In a snapshot's session: as they were at that moment. */
export async function countRows(client: Client): Promise<Record<string, number>> {
  const { rows } = await client.query(TABLES)
  const counts: Record<string, number> = {}
  for (const { table } of rows as { table: string }[]) {
    const { rows: counted } = await client.query(`SELECT count(*)::float8 AS rows FROM ONLY ${table}`)
    counts[table] = counted[0].rows
  }
  return counts
}

/**
 * Sees early what would break a backup late.
 * @returns with what the server is, the size of every database in bytes
 * @throws Stop that names the remedy
 */
export async function checkServer(
  clientMajor: number,
): Promise<{ server: Manifest['server']; sizes: Record<string, number> }> {
  const client = await connectTo('postgres')
  try {
    const { rows } = await client.query(
      `
      SELECT current_setting('server_version_num')::int AS "versionNum",
             (SELECT system_identifier::text FROM pg_control_system()) AS "systemIdentifier",
             current_setting('lo_compat_privileges') = 'on' AS "readsLargeObjects",
             has_table_privilege('pg_authid', 'SELECT') AS "readsPasswords",
             (SELECT coalesce(json_object_agg(datname, pg_database_size(oid)), '{}')
                FROM pg_database WHERE datname = ANY ($1)) AS sizes`,
      [DATABASES],
    )
    const { versionNum, systemIdentifier, readsLargeObjects, readsPasswords, sizes } = rows[0]
    const major = Math.floor(versionNum / 10_000)
    if (major !== clientMajor) {
      throw new Stop(`The server is PostgreSQL ${major}, this image's pg_dump is ${clientMajor}.`, [
        'Build the backup image on the database image that the stack uses (compose/backup-service/Dockerfile).',
      ])
    }
    if (!readsLargeObjects || !readsPasswords) {
      throw new Stop('The role backup may not read everything: large objects, or the hashes of the roles.', [
        'docker exec kgc-postgres-1 /docker-entrypoint-initdb.d/init-db.sh',
      ])
    }
    const missing = DATABASES.filter((name) => !(name in sizes))
    if (missing.length > 0) throw new Stop(`The server has no database ${missing.join(', ')}.`)
    return { server: { versionNum, systemIdentifier }, sizes }
  } finally {
    await client.end()
  }
}
