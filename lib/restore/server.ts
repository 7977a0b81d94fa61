import { PassThrough, type Readable } from 'node:stream'
import { BACKUP_STATE } from '../backup/lock.ts'
import { EXIT, Stop } from '../errors.ts'
import { CommandFailed, type Host } from '../host.ts'
import { BACKUP_FOLDER, BACKUP_SERVICE, HELD_BY_ANOTHER, POSTGRES, ROOT } from '../layout.ts'
import { type Command, quote, script, sh } from '../shell.ts'
import { findBeside } from './names.ts'
import { dropUnserved, identifier, literal, SURVEY } from './sql.ts'

/**
 * A container of its own to restore in. Never inside postgres' container: its first process is postgres itself, which
 * inherits every orphan there and takes one that a signal ended for a crashed server process: it then throws out everybody (seen).
 */
const WORKSHOP = 'kgc-restore'
/** In the workshop's own layer: it goes with it. */
const SPOOL = '/spool'
/** Longer than the longest of databases: 100 GB take 31 min with two workers (measured rates, linear). */
const LONGEST_SECONDS = 2 * 3600
/** Files have four hours of their own (files.ts). */
const WORKSHOP_SECONDS = 8 * 3600

export type DatabaseServer = {
  /** As server_version_num: 150018. */
  version: number
  system: string
  roles: string[]
  extensions: string[]
  databases: { name: string; bytes: number; comment: string | null; isPlain: boolean }[]
  /** Bytes of files that restores set aside, by name. */
  files: Record<string, number>
  /** Bytes free where databases and spooled dumps go. */
  free: number
  cores: number
}

/** Reads SQL on its stdin, in the server's own container as the superuser; stops at the first error. */
export const PSQL = `docker exec -i -u postgres ${POSTGRES} psql -XqAt -v ON_ERROR_STOP=1`

export const psql = (sql: string, database = 'postgres'): Command =>
  script(`${PSQL} -d ${quote(database)} <<'SQL'
${sql.trim()}
SQL`)

/** Prints what restores left in the volumes, as `files_old_TIME` or `files_copy_TIME`, with its size in bytes. */
const listFilesAside = script(
  `docker exec ${BACKUP_SERVICE} sh -c 'cd /data && for folder in */.files_old_* */.files_copy_*; do [ -d "$folder" ] && echo "\${folder##*/.}" $(du -sb "$folder" | cut -f 1); done; true'`,
)

/** @throws Stop when a container that a restore works in does not run */
export async function surveyDatabases(host: Host): Promise<DatabaseServer> {
  const missing = await host.read(
    script(
      `for name in ${POSTGRES} ${BACKUP_SERVICE}; do [ "$(docker inspect -f '{{.State.Running}}' $name 2> /dev/null)" = true ] || echo $name; done`,
    ),
  )
  if (missing)
    throw new Stop(`On ${host.name} these do not run: ${missing.split('\n').join(', ')}. Nothing was touched.`, [
      'Deploy the release that served: it starts what does not run. Then restore.',
    ])
  const [found, aside, disk] = await Promise.all([
    host.read(psql(SURVEY)),
    host.read(listFilesAside, { timeout: 300 }),
    host.read(
      script(
        `docker exec ${POSTGRES} sh -c 'df -Pk "$PGDATA" /tmp' | awk 'NR > 1 { print $4 }' | sort -n | head -n 1; nproc`,
      ),
    ),
  ])
  const files: Record<string, number> = {}
  for (const line of aside.split('\n').filter(Boolean)) {
    const [name = '', bytes] = line.split(' ')
    files[name] = (files[name] ?? 0) + Number(bytes)
  }
  const [free, cores] = disk.split('\n').map(Number)
  return { ...JSON.parse(found), files, free: (free ?? 0) * 1024, cores: cores ?? 1 }
}

/** That of a dead run: who calls this has the server's lock. */
const removeWorkshop = script(`docker rm -f -v ${WORKSHOP} > /dev/null 2>&1 || true`)

/**
 * Makes good for runs that died: removes their workshop and restored databases that never served, and starts what a swap had
 * stopped; such services are set to start "always" (see `swapScript`).
 */
export const removeLeftovers = (names: string[]): Command =>
  script(`stopped=$(docker ps -aq --filter label=com.docker.compose.project=kgc | xargs -r docker inspect -f '{{.HostConfig.RestartPolicy.Name}} {{.Name}}' | sed -n 's,^always /,,p')
[ -z "$stopped" ] || { docker start $stopped && docker update --restart unless-stopped $stopped; } > /dev/null
${removeWorkshop.shell}
${psql(dropUnserved(findBeside(names).filter(({ kind }) => kind === 'restore'))).shell}`)

/**
 * Runs the work with a container that has the client's tools and may act as the superuser. It lives no longer than the
 * connection of this run: its first process waits for the end of its input, and holds the lock of all backups meanwhile. Some
 * want it for that alone.
 * @throws Stop (exit 3) when a backup is running
 */
export async function withWorkshop<T>(host: Host, work: () => Promise<T>): Promise<T> {
  await host.write(removeWorkshop)
  const lives = new PassThrough()
  const ended = host.write(openWorkshop, { input: lives, timeout: WORKSHOP_SECONDS })
  ended.catch(() => {})
  try {
    await Promise.race([host.write(enterWorkshop), ended.then(() => new Promise(() => {}))]).catch(async (error) => {
      throw (await isBackupRunning(host, error)) ?? error
    })
    return await work()
  } finally {
    lives.end()
    await ended.catch(() => {})
  }
}

/** @throws Stop when the container is gone, which holds the lock of all backups */
export const assertWorkshop = (host: Host): Promise<string> =>
  host.write(sh`docker exec ${WORKSHOP} true`).catch((error) => {
    throw error instanceof CommandFailed ? new Stop('The container that this works in has died.') : error
  })

const openWorkshop: Command = script(
  `docker run --rm -i --init --name ${WORKSHOP} --network kgc_database-net --volume ${ROOT}/${BACKUP_FOLDER}:${BACKUP_STATE} --cap-drop ALL --security-opt no-new-privileges --memory 1g --entrypoint flock "$(docker inspect -f '{{.Image}}' ${BACKUP_SERVICE})" -n -E ${HELD_BY_ANOTHER} ${BACKUP_STATE}/lock cat > /dev/null`,
)

async function isBackupRunning(host: Host, error: unknown): Promise<Stop | undefined> {
  if (!(error instanceof CommandFailed) || error.result.code !== HELD_BY_ANOTHER) return undefined
  const { stdout } = await host.probe(sh`cat ${`${ROOT}/${BACKUP_FOLDER}/holder`}`)
  return new Stop(`A backup is running: ${stdout.trim() || 'one that has just begun'}.`, ['Wait for it.'], EXIT.locked)
}

/** The superuser's password goes from the server's .env through a pipe into a file of the workshop. */
const enterWorkshop: Command = script(`
cd ${ROOT}
for try in $(seq 100); do docker exec ${WORKSHOP} true 2> /dev/null && break; sleep 0.1; done
sed -n 's/^POSTGRES_PASSWORD=/postgres:5432:*:postgres:/p' .env | docker exec -i ${WORKSHOP} sh -c 'umask 077; mkdir -p ${SPOOL}; cat > ${SPOOL}/.pgpass'`)

export const inWorkshop = (text: string): Command =>
  sh`docker exec -i -e PGHOST=postgres -e PGUSER=postgres -e ${`PGPASSFILE=${SPOOL}/.pgpass`} ${WORKSHOP} bash -o pipefail -c ${text}`

export type Spooled = { bytes: number; sha256: string }

/**
 * Unpacks a compressed dump into a file on the server.
 * @param dump what zstd wrote
 * @param onBytes told how many bytes were sent so far
 * @returns size and hash of what arrived, to be compared with what the backup recorded
 * @throws when zstd finds it damaged, the disk is full, or the stream itself failed
 */
export async function spool(
  host: Host,
  database: string,
  dump: Readable,
  onBytes: (sofar: number) => void,
): Promise<Spooled> {
  const file = `${SPOOL}/${database}.dump`
  // A stream that fails would leave the other side waiting for its end: it gets one, and the failure is kept.
  const input = new PassThrough()
  let failed: unknown
  dump.on('error', (error) => {
    failed = error
    input.end()
  })
  dump.pipe(input)
  let sofar = 0
  dump.on('data', (chunk: Buffer) => {
    sofar += chunk.length
    onBytes(sofar)
  })
  const unpack = inWorkshop(`zstd -dcq | tee ${quote(file)} | sha256sum && wc -c < ${quote(file)}`)
  const printed = await host
    .write(unpack, { input, timeout: LONGEST_SECONDS })
    .catch((error) => Promise.reject(failed ?? error))
  if (failed) throw failed
  const [sha256 = '', bytes = ''] = printed.split(/[\s-]+/)
  return { bytes: Number(bytes), sha256 }
}

/** Fills a database from its spooled dump; the first error ends it. */
export async function fill(host: Host, into: string, database: string, jobs: number): Promise<void> {
  const file = quote(`${SPOOL}/${database}.dump`)
  await host.write(inWorkshop(`pg_restore -e -j ${jobs} -d ${quote(into)} ${file} && rm ${file}`), {
    timeout: LONGEST_SECONDS,
  })
}

/** Statistics are not part of a dump; without them the first queries crawl. */
export const analyze = (database: string, jobs: number): Command =>
  inWorkshop(`vacuumdb -qZ -j ${jobs} -d ${quote(database)}`)

/** Keeps a restored database under a name that no later run takes for a leftover. */
export const keepCopy = (side: string, copy: string, why: string): Command =>
  psql(
    `ALTER DATABASE ${identifier(side)} RENAME TO ${identifier(copy)};\nCOMMENT ON DATABASE ${identifier(copy)} IS ${literal(why)};`,
  )
