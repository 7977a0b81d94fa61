import { PassThrough } from 'node:stream'
import type { Actor } from './actor.ts'
import { EXIT, Stop } from './errors.ts'
import type { Host } from './host.ts'
import { HELD_BY_ANOTHER, LOCK, LOCK_HOLDER, ROOT, STEP_LOCK } from './layout.ts'
import type { Log } from './log.ts'
import { stateSum } from './release/survey.ts'
import { type Command, script, sh } from './shell.ts'

export type Holder = Actor & { since: string; action: string }

/** A run longer than this loses its lock: the server's own bound on a connection that hangs half open. Files may take 4 h. */
const LONGEST_RUN_SECONDS = 8 * 3600
/** A write that a dead run left behind is given this long to end. */
const LEFTOVER_SECONDS = 180
const LEFTOVER_WORKS = 76
const LOCKED = 'locked '

/**
 * Runs the work while this run holds the server's lock; a dry run takes no lock.
 * @param work gets the server's `stateSum` from the moment the lock was taken, or undefined in a dry run
 */
export async function withLock<T>(
  host: Host,
  log: Log,
  holder: Omit<Holder, 'since'>,
  { dryRun, wait }: { dryRun: boolean; wait: number },
  work: (host: Host, sum?: string) => Promise<T>,
): Promise<T> {
  if (dryRun) return work(host)
  const { unlock, sum, isHeld } = await log.step('Lock', () =>
    acquireLock(host, { ...holder, since: new Date().toISOString() }, wait),
  )
  try {
    return await work(underLock(host, isHeld), sum)
  } finally {
    await unlock()
  }
}

/**
 * Takes the server's deploy lock: a flock held by a process that lives as long as its SSH channel. When the runner,
 * its network or the server dies, the channel's stdin ends, and with it the process and the lock; no lock can go stale.
 * @param waitSeconds how long to wait for another run; 0 refuses at once
 * @returns a function that gives the lock back, the server's `stateSum`, and whether the lock is still held
 * @throws Stop (exit 3) that says who holds it, since when, and from where
 */
export async function acquireLock(
  host: Host,
  holder: Holder,
  waitSeconds: number,
): Promise<{ unlock: () => Promise<void>; sum: string; isHeld: () => boolean }> {
  const stdin = new PassThrough()
  let granted = (_sum: string) => {}
  const taken = new Promise<string>((resolve) => {
    granted = resolve
  })
  const ended = host.probe(holdLock(holder, waitSeconds), {
    timeout: LONGEST_RUN_SECONDS + waitSeconds,
    input: stdin,
    onLine: (line) => line.startsWith(LOCKED) && granted(line.slice(LOCKED.length)),
  })
  const outcome = await Promise.race([taken, ended])
  if (typeof outcome === 'string') {
    let held = true
    const lost = () => {
      held = false
    }
    ended.then(lost, lost)
    const unlock = async () => {
      stdin.end()
      await ended
    }
    return { unlock, sum: outcome, isHeld: () => held }
  }
  if (outcome.code === HELD_BY_ANOTHER) throw await explainHolder(host)
  if (outcome.code === LEFTOVER_WORKS) {
    throw new Stop(
      `A command that an earlier, dead run left behind still works on ${host.name}: a start, a migration, or a release that is stopped.`,
      ['Run again with --wait SECONDS, or see it with `ps -ef --forest` on the server.'],
      EXIT.locked,
    )
  }
  throw new Stop(
    `The deploy lock on ${host.name} could not be taken: ${outcome.stderr.trim() || `exit code ${outcome.code}`}`,
  )
}

/**
 * The command that holds the lock until its stdin ends, also while it waits for what an earlier run left behind: who asked
 * may die then. Only bash can wait for input and look at something else.
 */
function holdLock(holder: Holder, waitSeconds: number): Command {
  const hold = script(`
printf '%s\\n' "$1" > ${LOCK_HOLDER}
end=$((SECONDS + ${Math.max(LEFTOVER_SECONDS, waitSeconds)}))
until flock -n -x ${STEP_LOCK} true; do
  read -r -t 0.2; [ $? -gt 128 ] || exit 0
  [ $SECONDS -lt $end ] || exit ${LEFTOVER_WORKS}
done
echo "${LOCKED}$(${stateSum.shell})"
cat > /dev/null`)
  const wait = waitSeconds > 0 ? ['-w', String(waitSeconds)] : ['-n']
  return sh`cd ${ROOT} && mkdir -p state/nginx && flock ${wait} -E ${HELD_BY_ANOTHER} ${LOCK} bash -c ${hold.shell} hold ${JSON.stringify(holder)}`
}

/**
 * A host whose writes each hold a shared lock while they run. A runner can die while its last command still works on
 * the server; the next run waits for that command before it begins.
 */
function underLock(host: Host, isHeld: () => boolean): Host {
  const guard = (command: Command) => sh`cd ${ROOT} && flock -s ${STEP_LOCK} sh -c ${command.shell}`
  return {
    ...host,
    async write(command, options) {
      if (!isHeld()) throw new Stop(`This run no longer holds the lock on ${host.name}, so it goes no further.`)
      return host.write(guard(command), options)
    },
  }
}

async function explainHolder(host: Host): Promise<Stop> {
  const { stdout } = await host.probe(sh`cat ${`${ROOT}/${LOCK_HOLDER}`}`)
  const { who, from, since, action, runUrl } = parseHolder(stdout)
  const age = Math.round((Date.now() - Date.parse(since)) / 1000)
  return new Stop(
    `Another run holds the lock on ${host.name}: ${action} by ${who} from ${from}, since ${since} (${age} s ago).${runUrl ? ` ${runUrl}` : ''}`,
    [
      'Wait for it with --wait SECONDS.',
      'If that run is dead, its lock dies with its connection, within half a minute; then simply run again.',
    ],
    EXIT.locked,
  )
}

/** The file is written just after the lock is taken, so for a moment it may be missing or that of the run before. */
function parseHolder(text: string): Holder {
  try {
    return JSON.parse(text) as Holder
  } catch {
    return { who: 'somebody', from: 'somewhere', since: new Date().toISOString(), action: 'a run that has just begun' }
  }
}
