#!/usr/bin/env bash
# Roles, databases and extensions of the stack. Runs by itself when the data directory is empty, and may be run again
# at any time, for example after a database was dropped and restored:
#   docker exec kgc-postgres-1 /docker-entrypoint-initdb.d/init-db.sh
#
# Each application has an owner that cannot log in (kgc) and two logins that act as that owner (kgc_a, kgc_b),
# one in use and one spare, so that a password can be changed without a moment in which nobody fits.
# A login that exists keeps its password and its state: those belong to rotate-secrets.
set -euo pipefail

set -a
# shellcheck source=/dev/null
. "${DATABASE_LOGINS:-/run/database-logins.env}"
set +a

# A password must not end up in the server's log or in pg_stat_statements; \getenv below keeps it out of argv.
export PGOPTIONS='-c log_statement=none -c log_min_duration_statement=-1 -c log_min_error_statement=panic -c pg_stat_statements.track=none'

run_sql() {
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres "$@"
}

# app_database NAME LOGIN-IN-USE PASSWORD-VARIABLE
app_database() {
  local name=$1 active=$2 spare
  case $active in
    "${name}_a") spare=${name}_b ;;
    "${name}_b") spare=${name}_a ;;
    *) echo "init-db: the login of $name must be ${name}_a or ${name}_b, not '$active'" >&2; exit 1 ;;
  esac
  run_sql --dbname postgres --set name="$name" --set active="$active" --set spare="$spare" --file - <<SQL
\getenv password $3
SELECT format('CREATE ROLE %I NOLOGIN', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', :'active', :'password')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'active') \gexec
SELECT format('CREATE ROLE %I NOLOGIN', :'spare')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'spare') \gexec
SET client_min_messages = error; -- "is already a member"
GRANT :"name" TO :"active", :"spare";
ALTER ROLE :"active" SET role = :'name';
ALTER ROLE :"spare" SET role = :'name';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
ALTER DATABASE :"name" OWNER TO :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

app_database kgc      "$KGC_DB_USER"      KGC_DB_PASSWORD
app_database twenty   "$TWENTY_DB_USER"   TWENTY_DB_PASSWORD
app_database chatwoot "$CHATWOOT_DB_USER" CHATWOOT_DB_PASSWORD
app_database horilla  "$HORILLA_DB_USER"  HORILLA_DB_PASSWORD

# Who looks on (exporter), and who copies everything (backup; row security must not hide rows from it).
run_sql --dbname postgres --file - <<'SQL'
\getenv exporter_password EXPORTER_DB_PASSWORD
\getenv backup_password BACKUP_DB_PASSWORD
SELECT format('CREATE ROLE exporter LOGIN PASSWORD %L', :'exporter_password')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'exporter') \gexec
SELECT format('CREATE ROLE backup LOGIN BYPASSRLS PASSWORD %L', :'backup_password')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backup') \gexec
SET client_min_messages = error;
GRANT pg_monitor TO exporter;
GRANT pg_read_all_data TO backup;
-- pg_read_all_data leaves out large objects, and the hashes of the roles' passwords.
ALTER ROLE backup SET lo_compat_privileges = on;
GRANT SELECT ON pg_catalog.pg_authid TO backup;
GRANT CONNECT ON DATABASE kgc, twenty, chatwoot, horilla TO backup;

REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
-- Twenty looks here whether its own database exists.
GRANT CONNECT ON DATABASE postgres TO exporter, backup, twenty;
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
SQL

# Chatwoot's own role may not create the first two.
run_sql --dbname chatwoot --file - <<'SQL'
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS pgcrypto;
SQL
