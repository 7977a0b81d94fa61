import { createHash, randomBytes } from 'node:crypto'
import { ROOT } from './layout.ts'
import { type Command, quote, sh } from './shell.ts'

/** How to make a value. Everything is hex: it survives URLs, YAML, Compose, sh and awk alike without quoting. */
type Format = { bytes: number } | { from: 'operator' }

export type Secret = {
  name: string
  /** The services that get it. */
  users: string[]
  make: Format
  /** What is lost for good when the value is lost. */
  lostWithIt?: string
}

const hex = (name: string, users: string[], bytes = 24, lostWithIt?: string): Secret => ({
  name,
  users,
  make: { bytes },
  ...(lostWithIt ? { lostWithIt } : {}),
})
const given = (name: string, users: string[]): Secret => ({ name, users, make: { from: 'operator' } })

const BACKEND = ['kgc-backend-blue', 'kgc-backend-green', 'kgc-migrate']
const TWENTY = ['twenty', 'twenty-worker']
const CHATWOOT = ['chatwoot-prepare', 'chatwoot', 'chatwoot-sidekiq']
const HORILLA = ['horilla-migrate', 'horilla']
const REDIS = ['redis', 'redis-queue']

/** The inventory of the server's secrets (/opt/kgc/.env): the one list from which they are generated. */
export const SECRETS: readonly Secret[] = [
  hex('POSTGRES_PASSWORD', ['postgres']),
  hex('KGC_DB_PASSWORD', ['postgres', ...BACKEND]),
  hex('TWENTY_DB_PASSWORD', ['postgres', ...TWENTY]),
  hex('CHATWOOT_DB_PASSWORD', ['postgres', ...CHATWOOT]),
  hex('HORILLA_DB_PASSWORD', ['postgres', ...HORILLA]),
  hex('EXPORTER_DB_PASSWORD', ['postgres', 'postgres-exporter']),
  hex('BACKUP_DB_PASSWORD', ['postgres', 'backup-service']),
  hex('KGC_REDIS_PASSWORD', BACKEND),
  hex('TWENTY_REDIS_PASSWORD', TWENTY),
  hex('CHATWOOT_REDIS_PASSWORD', CHATWOOT),
  hex('BACKUP_REDIS_PASSWORD', ['backup-service']),
  hex('EXPORTER_REDIS_PASSWORD', [...REDIS, 'redis-exporter', 'redis-queue-exporter']),
  hex('JWT_SECRET', BACKEND, 32),
  given('SZAMLAZZ_HU_AGENT_KEY', BACKEND),
  hex('TWENTY_ENCRYPTION_KEY', TWENTY, 32, "Twenty's connected mail accounts, application variables and signing keys"),
  hex('TWENTY_APP_SECRET', TWENTY, 32),
  hex('CHATWOOT_SECRET_KEY_BASE', CHATWOOT, 64),
  hex('CHATWOOT_AR_PRIMARY_KEY', CHATWOOT, 16, "Chatwoot's channel tokens and second factors"),
  hex('CHATWOOT_AR_DETERMINISTIC_KEY', CHATWOOT, 16, "Chatwoot's channel tokens and second factors"),
  hex('CHATWOOT_AR_DERIVATION_SALT', CHATWOOT, 16, "Chatwoot's channel tokens and second factors"),
  hex('HORILLA_SECRET_KEY', HORILLA, 32),
  hex('HORILLA_DB_INIT_PASSWORD', HORILLA),
  hex('GRAFANA_ADMIN_PASSWORD', ['grafana']),
  hex('GRAFANA_SECRET_KEY', ['grafana'], 24, "the passwords of Grafana's data sources"),
  hex('RESTIC_PASSWORD', ['backup-service'], 32, 'every backup of the files'),
  given('S3_SECRET_ACCESS_KEY', ['backup-service', 'postgres', 'pitr']),
  hex('PITR_ENCRYPTION_KEY', ['postgres', 'pitr'], 32, 'everything that point in time recovery keeps in S3'),
  hex('SMOKE_PASSWORD', BACKEND, 16),
]

/**
 * A value for every secret that can be generated.
 * @param existing values that are already in use; they are kept
 */
export function generateSecrets(existing: Record<string, string | undefined> = {}): Record<string, string> {
  return Object.fromEntries(
    SECRETS.flatMap(({ name, make }): [string, string][] => {
      const value = existing[name] ?? ('bytes' in make ? randomBytes(make.bytes).toString('hex') : undefined)
      return value === undefined ? [] : [[name, value]]
    }),
  )
}

/**
 * Redis' users, as its aclfile. Passwords are stored as SHA-256, so the file gives nobody a password.
 * Each user may do everything but run the server: no administration, no other users, no flushing of what others stored.
 */
export function redisAcl(secrets: Record<string, string>): string {
  const user = (name: string, rules: string) =>
    `user ${name} on #${createHash('sha256')
      .update(secrets[`${name.toUpperCase()}_REDIS_PASSWORD`] ?? '')
      .digest('hex')} ${rules}`
  const application = '~* &* +@all -@admin -flushall -flushdb +info +client'
  return `${[
    'user default off',
    user('kgc', application),
    user('twenty', application),
    user('chatwoot', application),
    // A copy of the whole is what a replica asks for.
    user('backup', '-@all +ping +info +psync +sync +replconf'),
    user(
      'exporter',
      '-@all +ping +info +select +dbsize +config|get +client|list +slowlog|get +slowlog|len +latency|latest +latency|histogram',
    ),
  ].join('\n')}\n`
}

/**
 * The command with the server's secrets blanked in what it prints: an application's log may show them, and they must not
 * leave the server with it. Everything comes on stdout. It needs bash, for a list that is in no argument and no file.
 */
export function withoutSecrets(command: Command): Command {
  const values = `s/^(${SECRETS.map(({ name }) => name).join('|')})=["']?([^"']{8,})["']?$/\\2/p`
  const blanking = String.raw`s/[][\/.*^$]/\\&/g; s/.*/s\/&\/***\/g/`
  const list = `sed -nE ${quote(values)} ${ROOT}/.env | sed ${quote(blanking)}`
  return sh`bash -o pipefail -c ${`{ ${command.shell}\n} 2>&1 | sed -u -f <(${list})`}`
}
