/** Where things are on the server. Commands run in ROOT, so the other paths are relative to it. */
export const ROOT = '/opt/kgc'
export const RELEASE_CONF = 'state/nginx/release.conf'
export const RECORDS = 'state/releases.jsonl'
/** A commit and the services of its stack, in one line. */
export const SERVICES = 'state/services'
/** There while a checkout is in progress. */
export const CHECKOUT_PENDING = 'state/checkout.pending'
export const LOCK = 'state/deploy.lock'
export const LOCK_HOLDER = 'state/deploy.holder'
export const STEP_LOCK = 'state/step.lock'
/** Certificate chain and private key, in one file, which is root's alone. It belongs into every backup. */
export const CERTIFICATE = 'certs/site.pem'
/** Held by a backup and by a migration: a dump must not meet a table that changes. There once the backup-service has run. */
export const BACKUP_LOCK = 'state/backup/lock'
/** There while a server is rebuilt from a backup: from which, and what of it is done. No backup is made meanwhile. */
export const REBUILD = 'state/rebuild.jsonl'
export const colorEnv = (color: string) => `state/${color}.env`
export const PROXY = 'kgc-nginx-proxy-1'
/** nginx's main file inside the proxy's container. */
export const NGINX_CONF = '/etc/nginx/kgc/nginx.conf'
