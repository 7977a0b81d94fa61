import { compose } from '../compose.ts'
import { EXIT, Stop } from '../errors.ts'
import { CommandFailed, type Host } from '../host.ts'
import { EXCHANGE, ROOT } from '../layout.ts'
import { SECRETS } from '../secrets.ts'
import { type Command, quote, script, sh } from '../shell.ts'
import { PSQL } from './server.ts'
import { reverse, type Swap, swapSql } from './sql.ts'

/** The services of the stack that write to a database: those that are given its password. */
export const writersOf = (database: string): string[] =>
  (SECRETS.find(({ name }) => name === `${database.toUpperCase()}_DB_PASSWORD`)?.users ?? []).filter(
    (service) => service !== 'postgres',
  )

/** The longest start period of the stack: Twenty migrates its own database when it starts. */
const START_SECONDS = 300
/** Stop, start, and the same again when it is exchanged back. */
const LONGEST_SWAP_SECONDS = 900
const FILE = `${ROOT}/${EXCHANGE}`
/** What to know once something restored has served, and does no more. */
export const KEPT = [
  'What databases and files took in meanwhile is kept, as this shows: npx tsx scripts/restore.ts --status',
]
const OUTCOME = { notSwapped: 10, swappedBack: 11, notHealthy: 12, halfWay: 13 }

/** Something that takes the place of what serves, while those who write to it are stopped. */
export type Exchange = {
  /** For messages. */
  what: string
  services: string[]
  /** Shell that does it, and that undoes it wherever it was cut off. Each may be repeated. */
  forward: string
  back: string
}

/** Databases exchange their names. */
export const exchangeDatabases = (swaps: Swap[]): Exchange => ({
  what: swaps.map(({ database }) => database).join(', '),
  services: swaps.flatMap(({ database }) => writersOf(database)),
  forward: rename(swaps),
  back: rename(swaps.map(reverse)),
})

const rename = (swaps: Swap[]) => `rename_all ${quote(swaps[0]?.next ?? swaps[0]?.database ?? '')} <<'SQL'
${swapSql(swaps)}
SQL`

/** All of them in one outage, or none. */
export const together = (some: Exchange[]): Exchange => ({
  what: some.map(({ what }) => what).join(', '),
  services: [...new Set(some.flatMap(({ services }) => services))],
  forward: some.map(({ forward }) => `{ ${forward}\n}`).join(' &&\n'),
  back: some.map(({ back }) => `{ ${back}\n}`).join(' &&\n'),
})

/**
 * Stops who writes, exchanges, and starts again what ran, after the jobs that fit a database to its application. One
 * script on the server, which goes on when the connection is gone.
 * @returns seconds from the first stop until everything was healthy again
 * @throws Stop (exit 1) when nothing was exchanged, (exit 4) when it was exchanged back
 */
export async function swap(host: Host, exchange: Exchange): Promise<number> {
  const { code, stdout, stderr } = await host.write(swapScript(exchange), { timeout: LONGEST_SWAP_SECONDS }).then(
    (stdout) => ({ code: 0, stdout, stderr: '' }),
    (error) => (error instanceof CommandFailed ? error.result : Promise.reject(error)),
  )
  if (code === 0) return Number(/^down (\d+)$/m.exec(stdout)?.[1] ?? 0) / 1000
  const said = `${stdout}${stderr}`.trim().replace(/^/gm, '  ')
  const { what } = exchange
  if (code === OUTCOME.notSwapped)
    throw new Stop(`${what} could not be exchanged:\n${said}\nWhat served before serves.`)
  if (code === OUTCOME.swappedBack)
    throw new Stop(
      `${what} was exchanged, but its application did not become healthy:\n${said}\nIt was exchanged back: what served before serves.`,
      KEPT,
      EXIT.rolledBack,
    )
  if (code === OUTCOME.notHealthy)
    throw new Stop(
      `${what} was exchanged. Its application is not healthy, and was not before:\n${said}`,
      ['npx tsx scripts/smoke-test.ts', 'Back to what served before: npx tsx scripts/restore.ts --undo'],
      EXIT.needsHuman,
    )
  if (code === OUTCOME.halfWay)
    throw new Stop(
      `The exchange of ${what} is half done, and could be neither completed nor taken back:\n${said}`,
      [`The next restore or undo tries again first. What it does is in ${ROOT}/${EXCHANGE} on the server.`],
      EXIT.needsHuman,
    )
  throw new Stop(
    `It is not known how the exchange of ${what} ended:\n${said}\nWhat served before serves, or what was restored, whole.`,
    ['See which: npx tsx scripts/restore.ts --status', 'npx tsx scripts/smoke-test.ts'],
    EXIT.needsHuman,
  )
}

/**
 * `docker stop` is remembered: after a power failure in these seconds nothing would start by itself. Hence
 * `--restart always` meanwhile, which starts even such a container with dockerd (Docker, "Start containers automatically").
 * What is being done is in a file meanwhile: it is what `completeCutOff` goes on with.
 */
export const swapScript = (exchange: Exchange): Command => {
  const { services, forward, back } = exchange
  return script(`
# The connection may go; this goes on.
trap '' HUP INT TERM PIPE
running= names= sick=
for service in ${services.join(' ')}; do
  set -- $(docker inspect -f '{{.HostConfig.RestartPolicy.Name}} {{.State.Running}} {{if .State.Health}}{{.State.Health.Status}}{{end}}' kgc-$service-1 2> /dev/null)
  # One that is to start "always" was stopped by a swap that died.
  { [ "$2" = true ] && [ "$1" != no ]; } || [ "$1" = always ] || continue
  running="$running $service"; names="$names kgc-$service-1"
  [ "\${3:-healthy}" = healthy ] || sick=yes
done
# An answer can get lost: what counts is the name that is gone. $1 has it before, nobody after.
rename_all() {
  sql=$(cat)
  for try in 1 2 3 4 5; do
    printf '%s' "$sql" | ${PSQL} > /dev/null && return
    [ "$(echo "SELECT count(*) FROM pg_database WHERE datname = '$1'" | ${PSQL})" = 0 ] && return
    sleep 0.5
  done
  return 1
}
stop() { [ -z "$names" ] || { docker update --restart always $names && docker stop $names; } > /dev/null; }
start() {
  [ -z "$names" ] || { (${compose(sh`up -d --no-recreate --wait --wait-timeout ${START_SECONDS}`).shell} $running) && docker update --restart unless-stopped $names > /dev/null; }
}
remember() { printf '%s\\n' "$1" > ${FILE}.next && sync ${FILE}.next && mv ${FILE}.next ${FILE}; }
remember ${quote(JSON.stringify(exchange))} || exit ${OUTCOME.notSwapped}
take_back() { remember ${quote(JSON.stringify(reversed(exchange)))}; }
began=$(date +%s%N)
stop
code=0
if ${forward}
then
  if ! start; then
    if [ -n "$sick" ]; then code=${OUTCOME.notHealthy}; else
      stop
      take_back
      if ${back}
      then code=${OUTCOME.swappedBack}; else code=${OUTCOME.halfWay}; fi
      start
    fi
  fi
else
  take_back
  if ${back}
  then code=${OUTCOME.notSwapped}; else code=${OUTCOME.halfWay}; fi
  start
fi
[ $code = ${OUTCOME.halfWay} ] || rm ${FILE}
echo "down $((($(date +%s%N) - began) / 1000000))"
exit $code`)
}

/** What takes an exchange back. */
export const reversed = ({ forward, back, ...rest }: Exchange): Exchange => ({ ...rest, forward: back, back: forward })
