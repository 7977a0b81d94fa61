/** Where things are on the server. Commands run in ROOT, so the other paths are relative to it. */
export const ROOT = '/opt/kgc'
export const RELEASE_CONF = 'state/nginx/release.conf'
export const RECORDS = 'state/releases.jsonl'
/** The services of the stack, in one line, after the commit and the checksum of .env that name them. */
export const SERVICES = 'state/services'
/** There while a checkout is in progress. */
export const CHECKOUT_PENDING = 'state/checkout.pending'
export const LOCK = 'state/deploy.lock'
export const LOCK_HOLDER = 'state/deploy.holder'
export const STEP_LOCK = 'state/step.lock'
/** Certificate chain and private key, in one file, which is root's alone. It belongs into every backup. */
export const CERTIFICATE = 'certs/site.pem'
/** The backup-service's own. There once it has run. */
export const BACKUP_FOLDER = 'state/backup'
/** Held by a backup, a restore and a migration: a dump must not meet a table that changes. */
export const BACKUP_LOCK = `${BACKUP_FOLDER}/lock`
/** There while a restore or an undo exchanges something with what serves: what, and how it is completed. */
export const EXCHANGE = 'state/exchange.json'
/** What flock is told to exit with when a lock is another's (sysexits.h, EX_TEMPFAIL). */
export const HELD_BY_ANOTHER = 75
/** There while a server is rebuilt from a backup: from which, and what of it is done. No backup is made meanwhile. */
export const REBUILD = 'state/rebuild.jsonl'
export const colorEnv = (color: string) => `state/${color}.env`
export const PROXY = 'kgc-nginx-proxy-1'
export const POSTGRES = 'kgc-postgres-1'
/** Runs pgBackRest. */
export const PITR = 'kgc-pitr-1'
export const BACKUP_SERVICE = 'kgc-backup-service-1'
/** nginx's main file inside the proxy's container. */
export const NGINX_CONF = '/etc/nginx/kgc/nginx.conf'
