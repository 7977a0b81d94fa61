import type { DatabaseBackup } from '../backup/manifest.ts'
import { type Beside, besideName } from './names.ts'

export const identifier = (name: string) => `"${name.replaceAll('"', '""')}"`
export const literal = (text: string) => `'${text.replaceAll("'", "''")}'`

/**
 * What is there: one JSON object. Text for the identifier of the system: it does not fit into a JavaScript number. A database
 * is plain that is as init-db.sh makes it, without grants, settings and a limit of its own.
 */
export const SURVEY = `
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'system', (SELECT system_identifier::text FROM pg_control_system()),
  'roles', (SELECT json_agg(rolname) FROM pg_roles),
  'extensions', (SELECT json_agg(name) FROM pg_available_extensions),
  'databases', (SELECT json_agg(json_build_object(
    'name', datname, 'bytes', pg_database_size(oid), 'comment', shobj_description(oid, 'pg_database'),
    'isPlain', datconnlimit = -1 AND NOT EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = pg_database.oid)
      AND NOT EXISTS (SELECT FROM aclexplode(datacl) WHERE grantee <> datdba AND pg_get_userbyid(grantee) <> 'backup'))
    ORDER BY datname) FROM pg_database WHERE NOT datistemplate))`

/** An empty database for a dump. Nobody but its owner and superusers can enter until it has its grants. */
export const createBeside = (name: string, { owner, ...locale }: DatabaseBackup, comment: string) => `
CREATE DATABASE ${identifier(name)} OWNER ${identifier(owner)} TEMPLATE template0 ENCODING ${literal(locale.encoding)}
  LOCALE_PROVIDER ${locale.localeProvider}${locale.icuLocale === null ? '' : ` ICU_LOCALE ${literal(locale.icuLocale)}`}
  LC_COLLATE ${literal(locale.collate)} LC_CTYPE ${literal(locale.ctype)};
REVOKE ALL ON DATABASE ${identifier(name)} FROM PUBLIC;
COMMENT ON DATABASE ${identifier(name)} IS ${literal(comment)};`

/**
 * Gives a database the owner, grants, settings and connection limit of another one.
 * Lists such as search_path are kept already quoted, and must not be quoted again (variable_is_guc_list_quote of pg_dump).
 */
export const copyProperties = (from: string, to: string) => `
CREATE TEMP TABLE source AS SELECT * FROM pg_database WHERE datname = ${literal(from)};
SELECT format('ALTER DATABASE %I OWNER TO %I', ${literal(to)}, pg_get_userbyid(datdba)) FROM source \\gexec
SELECT format('ALTER DATABASE %I CONNECTION LIMIT %s', ${literal(to)}, datconnlimit) FROM source \\gexec
${grants(to)}
${settings('SELECT setrole, unnest(setconfig) AS one FROM pg_db_role_setting JOIN source ON setdatabase = source.oid', to)}`

/** The same from what a backup recorded, where the database itself is gone. */
export const giveProperties = ({ owner, acl, settings: kept, connectionLimit }: DatabaseBackup, to: string) => `
ALTER DATABASE ${identifier(to)} OWNER TO ${identifier(owner)};
ALTER DATABASE ${identifier(to)} CONNECTION LIMIT ${connectionLimit};
CREATE TEMP TABLE source AS SELECT ${acl === null ? 'NULL' : `ARRAY[${acl.map(literal).join(', ')}]`}::aclitem[] AS datacl, ${literal(identifier(owner))}::regrole::oid AS datdba;
${grants(to)}
${settings(
  kept
    .map(
      ({ role, setting }) =>
        `SELECT ${role === null ? '0' : `${literal(identifier(role))}::regrole`}::oid AS setrole, ${literal(setting)} AS one`,
    )
    .join(' UNION ALL ') || "SELECT 0::oid AS setrole, '' AS one WHERE false",
  to,
)}`

const grants = (to: string) => `
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC, %I', ${literal(to)}, pg_get_userbyid(datdba)) FROM source \\gexec
SELECT format('GRANT %s ON DATABASE %I TO %s%s', privilege_type, ${literal(to)},
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END)
  FROM source, aclexplode(coalesce(datacl, acldefault('d', datdba))) \\gexec`

const settings = (rows: string, to: string) => `
SELECT format('ALTER %s SET %I TO %s',
    CASE setrole WHEN 0 THEN format('DATABASE %I', ${literal(to)})
      ELSE format('ROLE %I IN DATABASE %I', pg_get_userbyid(setrole), ${literal(to)}) END,
    name, CASE WHEN name IN ('local_preload_libraries', 'search_path', 'session_preload_libraries',
      'shared_preload_libraries', 'temp_tablespaces', 'unix_socket_directories') THEN value ELSE quote_literal(value) END)
  FROM (${rows}) AS kept, LATERAL (SELECT split_part(one, '=', 1) AS name, substr(one, strpos(one, '=') + 1) AS value) AS parts \\gexec`

export type Swap = {
  /** The name that serves. */
  database: string
  /** What is to have that name; undefined when there is nothing to put back. */
  next: string | undefined
  /** What the one that has it now will be called; undefined when there is none. */
  aside: string | undefined
  /** Kept as the comment of the one that is set aside. */
  why: string
}

/** The comment of a restored database that served, until something else turned out not to work. */
export const EXCHANGED_BACK = 'served until it was exchanged back'

/** What takes a swap back. */
export const reverse = ({ database, next, aside }: Swap): Swap => ({
  ...{ database, next: aside, aside: next },
  why: EXCHANGED_BACK,
})

const keepIfServed = ({ name, database, stamp }: Beside) => {
  const copy = identifier(besideName(database, 'copy', stamp))
  const steps = [
    `ALTER DATABASE ${identifier(name)} RENAME TO ${copy}`,
    `ALTER DATABASE ${copy} ALLOW_CONNECTIONS true`,
  ]
  return `SELECT unnest(ARRAY[${steps.map(literal).join(', ')}]) FROM pg_database
  WHERE datname = ${literal(name)} AND shobj_description(oid, 'pg_database') = ${literal(EXCHANGED_BACK)} \\gexec`
}

/** Removes restored databases; those that served are kept as copies, since only they have what was written meanwhile. */
export const dropUnserved = (sides: Beside[]): string =>
  sides.flatMap((side) => [keepIfServed(side), dropDatabase(side.name)]).join('\n')

/**
 * Exchanges databases by renaming, all of them in one transaction: whatever happens, either all or none are exchanged.
 * Nothing is committed before it, so a server that dies in the middle comes back as it was. Who is connected is thrown
 * out first; a rename waits 5 s for others to leave the database, lets nobody in meanwhile, and then fails.
 */
export function swapSql(swaps: Swap[]): string {
  const setAside = ({ database, aside, why }: Swap) =>
    aside === undefined
      ? []
      : [
          `ALTER DATABASE ${identifier(database)} RENAME TO ${identifier(aside)};`,
          `ALTER DATABASE ${identifier(aside)} ALLOW_CONNECTIONS false;`,
          `COMMENT ON DATABASE ${identifier(aside)} IS ${literal(why)};`,
        ]
  const putInPlace = ({ database, next }: Swap) =>
    next === undefined
      ? []
      : [
          `ALTER DATABASE ${identifier(next)} RENAME TO ${identifier(database)};`,
          `ALTER DATABASE ${identifier(database)} ALLOW_CONNECTIONS true;`,
          `COMMENT ON DATABASE ${identifier(database)} IS NULL;`,
        ]
  const names = swaps.flatMap(({ database, next }) => [database, ...(next ? [next] : [])])
  return [
    `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname IN (${names.map(literal).join(', ')});`,
    'BEGIN;',
    "SET LOCAL lock_timeout = '10s';",
    ...swaps.flatMap((one) => [...setAside(one), ...putInPlace(one)]),
    'COMMIT;',
  ].join('\n')
}

export const dropDatabase = (name: string) => `DROP DATABASE IF EXISTS ${identifier(name)} WITH (FORCE);`

/** Exact counts by table, as JSON; the same tables that a backup counts. */
export const COUNT_ROWS = `
SELECT coalesce(json_object_agg(format('%I.%I', nspname, relname),
    (xpath('//c/text()', query_to_xml(format('SELECT count(*) AS c FROM ONLY %I.%I', nspname, relname), false, true, '')))[1]::text::bigint), '{}')
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind = 'r' AND relpersistence <> 't' AND nspname <> 'information_schema' AND nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')`
