import { spawn, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { Decrypter } from 'age-encryption'
import { readCatalog } from '../../lib/backup/catalog.ts'
import { MANIFEST, type Manifest, newRunId, runKey } from '../../lib/backup/manifest.ts'
import { openStore } from '../../lib/backup/object-store.ts'
import { resticRepository } from '../../lib/backup/restic.ts'
import { s3Client } from '../../lib/backup/s3-client.ts'
import type { BackupState } from '../../lib/backup/state.ts'
import { BACKUP_FOLDER, BACKUP_SERVICE, POSTGRES, ROOT } from '../../lib/layout.ts'
import { quote, script, sh } from '../../lib/shell.ts'
import { local } from './engine.ts'
import { ENV_FILE, onServer } from './harness.ts'
import { PROJECT_DIR, S3 } from './names.ts'
import { AGE_IDENTITY, s3Settings } from './s3.ts'

/** Starts the backup in its container, as cron does, with some of its settings changed. */
export function startBackup(flags: string[] = [], env: Record<string, string> = {}) {
  const settings = Object.entries(env).flatMap(([name, value]) => ['-e', `${name}=${value}`])
  return onServer((host) => host.probe(sh`docker exec ${settings} ${BACKUP_SERVICE} backup ${flags}`, { timeout: 300 }))
}

/** A backup as a person starts it at a terminal, where the running step is one live line. */
export function startOnTerminal() {
  const command = [process.execPath, '--import', 'tsx', 'scripts/backup.ts', '--env', ENV_FILE].join(' ')
  const child = spawn('script', ['-qec', command, '/dev/null'], {
    cwd: PROJECT_DIR,
    env: { ...process.env, TERM: 'xterm', CI: '', GITHUB_ACTIONS: '' },
    timeout: 180_000,
  })
  const seen = { text: '' }
  child.stdout.on('data', (chunk) => {
    seen.text += chunk
  })
  const ended = new Promise<number | null>((resolve) => child.on('close', resolve))
  return { seen, ended }
}

export const store = () => openStore(s3Settings())
export async function catalog() {
  const open = await store()
  return readCatalog(open).finally(open.close)
}

/** Uploads that were begun and neither completed nor aborted. */
export async function openUploads(prefix: string): Promise<string[]> {
  const { client, s3 } = await s3Client(s3Settings())
  const { Uploads = [] } = await client.send(new s3.ListMultipartUploadsCommand({ Bucket: S3.bucket, Prefix: prefix }))
  client.destroy()
  return Uploads.map(({ Key = '' }) => Key)
}

/** Bytes of all objects below a prefix. */
export async function sizeBelow(prefix: string): Promise<number> {
  const open = await store()
  const objects = await open.list(prefix).finally(open.close)
  return objects.reduce((all, { size }) => all + size, 0)
}

/** A run made from another one's manifest, with an object of its own. */
export async function forgeRun(from: Manifest, started: Date, changes: Partial<Manifest> = {}): Promise<string> {
  const open = await store()
  const run = newRunId(started, 'forged')
  const manifest = { ...from, run, started: started.toISOString(), ...changes }
  await open.putText(runKey('kgc', run, 'kgc.dump.zst.age'), 'its own')
  await open.putText(runKey('kgc', run, MANIFEST), JSON.stringify(manifest))
  open.close()
  return run
}

/** What a thief of the key can do to a backup that a lock protects: another text over the manifest, or a mark that it was removed. */
export async function hideManifest(run: string, how: 'overwrite' | 'remove'): Promise<void> {
  const { client, s3 } = await s3Client(s3Settings())
  const object = { Bucket: S3.bucket, Key: runKey('kgc', run, MANIFEST) }
  if (how === 'remove') await client.send(new s3.DeleteObjectCommand(object))
  else await client.send(new s3.PutObjectCommand({ ...object, Body: '{}' }))
  client.destroy()
}

/** Every version and every mark of a removal that is left of a run; `lift` removes what a lock holds. */
export async function versionsOf(run: string, { lift = false } = {}): Promise<string[]> {
  const { client, s3 } = await s3Client(s3Settings())
  const Prefix = runKey('kgc', run, '')
  const page = await client.send(new s3.ListObjectVersionsCommand({ Bucket: S3.bucket, Prefix }))
  const all = [...(page.Versions ?? []), ...(page.DeleteMarkers ?? [])]
  if (lift)
    for (const { Key, VersionId } of all)
      await client.send(
        new s3.DeleteObjectCommand({ Bucket: S3.bucket, Key, VersionId, BypassGovernanceRetention: true }),
      )
  client.destroy()
  return all.map(({ Key = '' }) => Key)
}

/** restic, in the container of the backup and with its settings. */
export const restic = (args: string[]) =>
  onServer((host) =>
    host.read(
      sh`docker exec -e ${`RESTIC_REPOSITORY=${resticRepository(s3Settings())}`} ${BACKUP_SERVICE} sh -c ${'AWS_ACCESS_KEY_ID=$S3_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY=$S3_SECRET_ACCESS_KEY AWS_DEFAULT_REGION=$S3_REGION exec restic -q --cacert "$S3_CA_FILE" -o s3.bucket-lookup=path --cache-dir /var/lib/backup/restic-cache "$@"'} restic ${args}`,
      { timeout: 60 },
    ),
  )

const STATE = `${ROOT}/${BACKUP_FOLDER}/state.json`
export const readState = async (): Promise<BackupState> =>
  JSON.parse(await onServer((host) => host.read(sh`cat ${STATE}`)))
/** Makes the backup believe otherwise than it was. */
export async function changeState(changes: Partial<BackupState>): Promise<void> {
  const input = JSON.stringify({ ...(await readState()), ...changes })
  await onServer((host) => host.write(sh`cat > ${STATE}`, { input }))
}
export const metricsFile = () =>
  onServer((host) => host.read(sh`cat ${`${ROOT}/${BACKUP_FOLDER}/metrics/kgc_backup.prom`}`))

/** Starts a container that was killed, and waits until it is healthy. */
export const startAgain = (container: typeof BACKUP_SERVICE | typeof POSTGRES) =>
  onServer((host) =>
    host.read(
      script(
        `docker start ${container} > /dev/null; until [ "$(docker inspect -f '{{.State.Health.Status}}' ${container})" = healthy ]; do sleep 0.5; done`,
      ),
    ),
  )

/** What was stored, as whoever holds the identity reads it: with other programs than those that wrote it. */
export async function decrypted(key: string, identity?: string): Promise<Buffer> {
  const open = await store()
  const chunks: Buffer[] = []
  for await (const chunk of open.get(key)) chunks.push(chunk)
  open.close()
  const decrypter = new Decrypter()
  decrypter.addIdentity(identity ?? /AGE-SECRET-KEY-\S+/.exec(readFileSync(AGE_IDENTITY, 'utf8'))?.[0] ?? '')
  const packed = await decrypter.decrypt(Buffer.concat(chunks))
  const { stdout, status } = spawnSync('zstd', ['-d', '-c', '-q'], { input: packed, maxBuffer: 2 ** 30 })
  if (status !== 0) throw new Error('zstd refused what was stored')
  return stdout
}

/** Runs SQL as superuser in one of the stack's databases. */
export const sql = (database: string, text: string) =>
  onServer((host) =>
    host.read(sh`docker exec -i kgc-postgres-1 psql -X -q -At -v ON_ERROR_STOP=1 -U postgres -d ${database}`, {
      input: text,
      timeout: 120,
    }),
  )

export const loadData = () => sql('kgc', readFileSync(`${PROJECT_DIR}/test/rehearsal/tests/backup-data.sql`, 'utf8'))

/** Ceph's own tool: quotas, and what else no client may do. */
export const radosgw = (command: string) =>
  local.read(sh`docker exec ${S3.container} sh -c ${`radosgw-admin ${command}`}`, { timeout: 60 })

/** What runs in the backup container, besides cron. */
export const processes = async () =>
  (
    await onServer((host) =>
      host.read(
        script(
          `docker exec ${BACKUP_SERVICE} ps -eo args= | grep -E ${quote('^(pg_dump|zstd|age|restic|bash -o|node)')} || true`,
        ),
      ),
    )
  )
    .split('\n')
    .filter(Boolean)

/** A command on the queue of jobs, as one of its users. */
export const queue = (command: string) =>
  onServer((host) =>
    host.read(
      script(
        `sed -n 's/^CHATWOOT_REDIS_PASSWORD=//p' ${ROOT}/.env | docker exec -i kgc-redis-queue-1 sh -c ${quote(`read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli --no-auth-warning --user chatwoot ${command}`)}`,
      ),
    ),
  )

/** SQL on Grafana's database. */
export const grafana = (text: string) =>
  onServer((host) =>
    host.read(
      script(
        `docker run --rm --network none --user 472:0 -v kgc_grafana-data:/data --entrypoint sqlite3 "$(docker inspect -f '{{.Image}}' ${BACKUP_SERVICE})" /data/grafana.db ${quote(text)}`,
      ),
    ),
  )

/** Transactions at a constant rate, their slowest hundredth in milliseconds, and how many failed. */
export type Load = { transactions: number; p99: number; failed: number }
const LOAD_DATABASE = 'figures_load'
const RATE = 50

/** The load that pgbench makes in so many seconds, well below what the server can, in a database of its own. */
export async function loadOf(seconds: number): Promise<Load> {
  const prefix = `/tmp/load-${Date.now()}`
  const shown = await onServer((host) =>
    host.read(
      sh`docker exec -u postgres ${POSTGRES} bash -ec ${`
if ! psql -XqAt -d postgres -c "SELECT FROM pg_database WHERE datname = '${LOAD_DATABASE}'" | grep -q ^; then
  createdb ${LOAD_DATABASE} && pgbench -i -q -s 5 ${LOAD_DATABASE} > /dev/null 2>&1
fi
pgbench -n -c 4 -R ${RATE} -T ${seconds} -l --log-prefix=${prefix} ${LOAD_DATABASE} 2> /dev/null | awk '/^number of failed transactions/ { print $5 }'
cut -d ' ' -f 3 ${prefix}.* | sort -n | awk '{ took[NR] = $1 } END { print NR, took[int(NR * 0.99)] }'
rm -f ${prefix}.*`}`,
      { timeout: seconds + 120 },
    ),
  )
  const [failed = Number.NaN, transactions = Number.NaN, micros = Number.NaN] = shown.trim().split(/\s+/).map(Number)
  return { failed, transactions, p99: micros / 1000 }
}

export const describeLoad = ({ transactions, p99, failed }: Load) =>
  `p99 ${p99.toFixed(1)} ms of ${transactions} transactions, ${failed} failed`
export async function removeLoad(): Promise<void> {
  await sql('postgres', `DROP DATABASE IF EXISTS ${LOAD_DATABASE} WITH (FORCE)`)
}
