import { compose } from '../compose.ts'
import { Stop } from '../errors.ts'
import { POSTGRES } from '../layout.ts'
import { type Command, script, sh } from '../shell.ts'
import { local, type When } from '../when.ts'

/** Where the cluster is before anything was ever restored (compose/base.yaml). */
export const FIRST_VOLUME = 'kgc_postgres-data'
/** One line for each time that another cluster took the serving one's place. */
export const PITR_RECORDS = 'state/pitr.jsonl'
/** There while one cluster takes the place of another: what is to serve, and what was stopped for it. */
export const SWAP = 'state/pitr.swap'
export const SIDE = 'kgc-postgres-restore-1'
const DOWNLOAD = 'kgc-pitr-download'
export const LABEL = 'kgc.pitr'

export type Backup = { label: string; type: string; start: Date; stop: Date; bytes: number }
export type Replacement = { at: string; volume: string; was: string; target: string }

/** @param json what `pgbackrest info --output=json` printed */
export function parseBackups(json: string): Backup[] {
  type Info = {
    backup: {
      label: string
      type: string
      error?: boolean
      timestamp: { start: number; stop: number }
      info: { size: number }
    }[]
  }[]
  const found = (JSON.parse(json) as Info)[0]?.backup ?? []
  return found
    .filter(({ error }) => !error)
    .map(({ label, type, timestamp, info }) => ({
      ...{ label, type, bytes: info.size },
      start: new Date(timestamp.start * 1000),
      stop: new Date(timestamp.stop * 1000),
    }))
    .sort((a, b) => a.stop.getTime() - b.stop.getTime())
}

/**
 * The backup from which the log leads to the moment: the last one that had ended by then. pgBackRest would choose the
 * same, but one must be able to say how much there is to download.
 * @throws Stop when there is none
 */
export function chooseBackup(backups: Backup[], when: When): Backup {
  const before = backups.filter(({ stop }) => when === 'newest' || stop <= when)
  const chosen = before.at(-1)
  if (chosen) return chosen
  const first = backups[0]
  if (!first) throw new Stop('There is no backup for point in time recovery in S3 yet.', ['docker logs kgc-pitr-1'])
  throw new Stop(`The earliest moment that can be restored is ${local(first.stop)}: then the first backup ended.`, [
    'Earlier ones are in the nightly backups: npx tsx scripts/restore.ts --all --before WHEN',
  ])
}

/**
 * The line of the log (Postgres: timeline) forks at every restore. A moment is looked for on the line that served when it
 * passed, which is that of the backup before it. Never on the latest line: that may be one of a cluster that was only
 * looked at (seen: all commits since that look were missing). kgc-pitr-1 backs up every line that comes to serve.
 */
export function restoreArguments(backup: Backup, when: When): string[] {
  if (when === 'newest') return [`--set=${backup.label}`, '--type=default', '--target-timeline=current']
  const target = when.toISOString().replace('T', ' ').replace('Z', '+00')
  return [
    `--set=${backup.label}`,
    '--type=time',
    `--target=${target}`,
    '--target-action=promote',
    '--target-timeline=current',
  ]
}

/** A new volume for a cluster. The names sort by time, and say that Compose may use them. */
export const newVolume = (now: Date) => `kgc_postgres-data-${now.toISOString().replace(/[-:]|\..*/g, '')}`

const labels = (target: string) => [
  ...['--label', 'com.docker.compose.project=kgc', '--label', 'com.docker.compose.volume=postgres-data'],
  ...['--label', `${LABEL}=${target}`],
]

const withVolume = (volume: string, command: Command) =>
  script(`export POSTGRES_RESTORE_VOLUME=${sh`${volume}`.shell}\n${command.shell}`)

/** Fills a new volume from S3. */
export const download = (volume: string, backup: Backup, when: When): Command =>
  withVolume(
    volume,
    script(`
set -e
docker volume create ${sh`${labels(when === 'newest' ? when : when.toISOString())} ${volume}`.shell} > /dev/null
${compose(sh`run --rm --no-deps -T --name ${DOWNLOAD} --user postgres --entrypoint pgbackrest postgres-restore --stanza=kgc --log-level-console=info restore ${restoreArguments(backup, when)}`).shell}`),
  )

/** Makes a cluster that served before begin a line of its own, from where it ended. */
export const forkOld = (volume: string): Command => {
  const settings = script(`
cd /var/lib/postgresql/data
sed -i '/^recovery_target/d; /^restore_command/d' postgresql.auto.conf
printf '%s\\n' "restore_command = 'pgbackrest --stanza=kgc archive-get %f \\"%p\\"'" "recovery_target_timeline = 'current'" >> postgresql.auto.conf
touch recovery.signal`)
  return withVolume(
    volume,
    compose(
      sh`run --rm --no-deps -T --name ${DOWNLOAD} --user postgres --entrypoint sh postgres-restore -ec ${settings.shell}`,
    ),
  )
}

/** Takes that back, of an undo that died: without the log in S3 the cluster would not start. */
export const forgetFork = (volume: string): Command =>
  script(
    `docker run --rm --network none --volume ${sh`${volume}`.shell}:/data --entrypoint rm "$(docker inspect -f '{{.Image}}' ${POSTGRES})" -f /data/recovery.signal`,
  )

/** Starts the second cluster; nothing but what is run in its container reaches it. */
export const startSide = (volume: string): Command => withVolume(volume, compose(sh`up -d --no-deps postgres-restore`))

export const stopSide = script(
  `! docker inspect ${SIDE} > /dev/null 2>&1 || { docker stop -t 120 ${SIDE} && docker rm ${SIDE}; } > /dev/null`,
)

/** Removes what a restore left that never served. */
export const removeLeftovers = (volumes: string[]): Command =>
  script(`
docker rm -f ${SIDE} ${DOWNLOAD} > /dev/null 2>&1 || true
${volumes.length > 0 ? sh`docker volume rm ${volumes} > /dev/null`.shell : ''}`)

export const psql = (container: string, database: string, sql: string): Command =>
  sh`docker exec ${container} psql -U postgres -XAtq -v ON_ERROR_STOP=1 -d ${database} -c ${sql}`

/** Exact rows of every table itself, as lines `schema.table|rows`. */
export const COUNT_ROWS = `SELECT format('%I.%I', schemaname, tablename) || '|' ||
  (xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM ONLY %I.%I', schemaname, tablename), false, true, '')))[1]
  FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1`

/** Where the rows differ, as lines for a reader. */
export function compareRows(database: string, live: string, restored: string): string[] {
  const rows = (text: string) =>
    new Map(
      text
        .split('\n')
        .filter(Boolean)
        .map((line) => [line.slice(0, line.lastIndexOf('|')), Number(line.slice(line.lastIndexOf('|') + 1))]),
    )
  const [now, then] = [rows(live), rows(restored)]
  return [...new Set([...now.keys(), ...then.keys()])].sort().flatMap((table) => {
    const [a, b] = [now.get(table), then.get(table)]
    if (a === b) return []
    if (b === undefined) return [`${database}: ${table} with ${a} rows goes`]
    if (a === undefined) return [`${database}: ${table} with ${b} rows comes back`]
    return [`${database}: ${table} ${a} -> ${b} rows (${b > a ? '+' : ''}${b - a})`]
  })
}
