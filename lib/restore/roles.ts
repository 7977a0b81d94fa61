import type { Readable } from 'node:stream'
import type { Host } from '../host.ts'
import { quote } from '../shell.ts'
import { inWorkshop } from './server.ts'

/** The passwords' hashes must not end up in the server's log or in pg_stat_statements. */
const UNSEEN =
  '-c log_statement=none -c log_min_duration_statement=-1 -c log_min_error_statement=panic -c pg_stat_statements.track=none'

/**
 * Roles are made where they are missing; all get the passwords, rights and settings that they had. What pg_dumpall writes
 * is made so that it can be run again.
 */
export const restoreRoles = (host: Host, dump: Readable): Promise<string> =>
  host.write(
    inWorkshop(
      `zstd -dcq | sed -E ${quote(String.raw`s/^CREATE ROLE (.*);$/DO $role$ BEGIN CREATE ROLE \1; EXCEPTION WHEN duplicate_object THEN NULL; END $role$;/`)} | PGOPTIONS=${quote(UNSEEN)} psql -XqAt -v ON_ERROR_STOP=1 -d postgres > /dev/null`,
    ),
    { input: dump, timeout: 300 },
  )

/**
 * Of a dump of roles, what is about those that are not in the list: awk, with the names that there are (quoted as SQL has
 * them, one a line) as its first file and the dump as its second.
 */
export const ONLY_MISSING = `NR == FNR { there[$0]; next }
/^(CREATE|ALTER) ROLE / { name = $0; sub(/^[A-Z]+ ROLE /, "", name); for (one in there) if (index(name, one ";") == 1 || index(name, one " ") == 1) next; print }
/^GRANT .* TO / { for (one in there) if (index($0, " TO " one ";") || index($0, " TO " one " ")) next; print }`

/**
 * Makes the roles of a backup that the server does not have, with their passwords, rights and memberships. Those that are
 * there stay as they are: their passwords are in its .env.
 */
export const restoreMissingRoles = (host: Host, dump: Readable): Promise<string> =>
  host.write(
    inWorkshop(
      `psql -XqAt -v ON_ERROR_STOP=1 -d postgres -c 'SELECT quote_ident(rolname) FROM pg_roles' > /tmp/there && zstd -dcq | awk ${quote(ONLY_MISSING)} /tmp/there - | PGOPTIONS=${quote(UNSEEN)} psql -XqAt -v ON_ERROR_STOP=1 -d postgres > /dev/null`,
    ),
    { input: dump, timeout: 300 },
  )
