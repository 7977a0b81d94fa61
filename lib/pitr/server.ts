import type { Host } from '../host.ts'
import { PITR, POSTGRES, ROOT } from '../layout.ts'
import { valuesIn } from '../lines.ts'
import { script, sh } from '../shell.ts'
import {
  COUNT_ROWS,
  compareRows,
  FIRST_VOLUME,
  LABEL,
  PITR_RECORDS,
  psql,
  type Replacement,
  SIDE,
  SWAP,
} from './cluster.ts'

/** archive_timeout is 60 s, and pgBackRest gives a piece up after another 60. */
const FLUSH_SECONDS = 150

export type Found = {
  /** Whether the server's .env says PITR=on, and the container that has pgBackRest runs. */
  on: boolean
  keeper: boolean
  /** Answers, and is the cluster whose log is in S3. */
  live: 'ours' | 'another' | 'down'
  /** The volume that serves. */
  volume: string
  replacements: Replacement[]
  /** Left by a run that died: a swap in the middle, volumes that never served. */
  swap: string
  leftovers: string[]
  volumes: string[]
  freeBytes: number
  /** What `pgbackrest info --output=json` says. */
  info: string
}

const surveyCommand = script(`
cd ${ROOT}
echo "pitr=$(sed -n 's/^PITR=//p' .env | tail -n 1)"
echo "volume=$(sed -n 's/^POSTGRES_VOLUME=//p' .env | tail -n 1)"
echo "free=$(df -Pk /var/lib/docker | awk 'NR > 1 { print $4 }')"
sed -n 's/^to=/swap=/p' ${SWAP} 2> /dev/null
sed -n 's/^{/record={/p' ${PITR_RECORDS} 2> /dev/null
docker volume ls --filter label=com.docker.compose.project=kgc --format 'exists={{.Name}}'
docker volume ls --filter label=${LABEL} --format 'made={{.Name}}'
docker inspect -f 'keeper={{.State.Running}}' ${PITR} 2> /dev/null
echo "system=$(docker exec ${POSTGRES} psql -U postgres -XAtqc 'SELECT system_identifier FROM pg_control_system()' 2> /dev/null)"
echo "info=$(docker exec -u postgres ${PITR} pgbackrest --stanza=kgc info --output=json 2> /dev/null)"
true`)

/** What is there, for a restore to a time to work with. Changes nothing. */
export async function surveyPitr(host: Host): Promise<Found> {
  return parseFound(await host.read(surveyCommand, { timeout: 120 }))
}

export function parseFound(output: string): Found {
  const { all, one } = valuesIn(output)
  const replacements = all('record').map((line) => JSON.parse(line) as Replacement)
  const volume = one('volume') || FIRST_VOLUME
  const served = new Set([volume, one('swap'), ...replacements.flatMap(({ volume, was }) => [volume, was])])
  return {
    on: one('pitr') === 'on',
    keeper: one('keeper') === 'true',
    live: one('system') === '' ? 'down' : one('info').includes(`"system-id":${one('system')}`) ? 'ours' : 'another',
    ...{ volume, replacements, swap: one('swap'), volumes: all('exists') },
    leftovers: all('made').filter((name) => !served.has(name)),
    freeBytes: Number(one('free')) * 1024,
    info: one('info'),
  }
}

/**
 * Brings the log up to this moment into S3, with a transaction at its end: a recovery that finds none after the moment it
 * looks for does not believe that it has arrived (Postgres 13 and later).
 */
export async function flushLog(host: Host): Promise<void> {
  await host.write(psql(POSTGRES, 'postgres', 'SELECT txid_current()'))
  const piece = await host.write(psql(POSTGRES, 'postgres', 'SELECT pg_walfile_name(pg_switch_wal())'))
  const arrived = `SELECT last_archived_wal COLLATE "C" >= '${piece}' FROM pg_stat_archiver`
  await host.write(
    script(`
until [ "$(${psql(POSTGRES, 'postgres', arrived).shell})" = t ]; do sleep 1; done`),
    { timeout: FLUSH_SECONDS },
  )
}

/** Prints the second cluster's newest transaction as soon as it is open for writing; fails with its log when it ends. */
export const waitForSide = script(`
until [ "$(${psql(SIDE, 'postgres', 'SELECT pg_is_in_recovery()').shell} 2> /dev/null)" = f ]; do
  if [ "$(docker inspect -f '{{.State.Running}}' ${SIDE})" != true ]; then docker logs --tail 15 ${SIDE} >&2 2>&1; exit 1; fi
  sleep 0.5
done
${psql(SIDE, 'postgres', 'SELECT extract(epoch FROM pg_last_xact_replay_timestamp())::bigint').shell}`)

const DATABASES = `SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' ORDER BY 1`

/** What a swap would change, counted to the row; no lines when nothing would. */
export async function compareClusters(host: Host, timeout: number): Promise<string[]> {
  const databases = async (container: string) =>
    (await host.read(psql(container, 'postgres', DATABASES))).split('\n').filter(Boolean)
  const [now, then] = [await databases(POSTGRES), await databases(SIDE)]
  const lines: string[] = []
  for (const name of [...new Set([...now, ...then])].sort()) {
    if (!then.includes(name)) lines.push(`database ${name} goes`)
    else if (!now.includes(name)) lines.push(`database ${name} comes back`)
    else {
      const [live, restored] = await Promise.all(
        [POSTGRES, SIDE].map((container) => host.read(psql(container, name, COUNT_ROWS), { timeout })),
      )
      lines.push(...compareRows(name, live ?? '', restored ?? ''))
    }
  }
  return lines
}

/** A command on the second cluster's data, with the server's own programs. */
export const onSide = (command: string) => sh`docker exec ${SIDE} sh -c ${command}`

/** A backup is made by itself after every swap; of the largest databases it takes minutes. */
const BACKUP_SECONDS = 1800

/**
 * Waits for the first backup of the line of the log that serves. Until it is there, the way from S3 leads to the end of
 * the line before: a server lost in these minutes would come back as it was before the restore. None is made with PITR off.
 */
export const waitForBackup = (host: Host): Promise<string> =>
  host.read(
    script(`
grep -qx PITR=on ${ROOT}/.env || exit 0
until due=$(docker exec -u postgres ${PITR} /opt/pitr/keep.sh due 2> /dev/null) && [ -z "$due" ]; do sleep 2; done`),
    { timeout: BACKUP_SECONDS },
  )
