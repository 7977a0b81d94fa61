import chalk from 'chalk'
import { EXIT, Stop } from './errors.ts'

type Stream = { write(text: string): unknown; isTTY?: boolean }

export type Log = {
  /** Where this run writes its result. */
  result(text: string): void
  /** A line for the person watching. */
  say(text: string): void
  warn(text: string): void
  /**
   * Runs one named step, shows it, times it.
   * @param mode `whole` for a step that, once begun, must not be left in the middle; `always` for one that makes good
   * and runs after an interruption, too
   * @throws Stop (exit 130) as soon as the run is interrupted
   */
  step<T>(title: string, work: () => Promise<T>, mode?: StepMode): Promise<T>
  /** How far the running step is; shown beside its title. */
  progress(text: string): void
  /** From now on, these values are blanked in all output. */
  hide(redact: (text: string) => string): void
  /** A text as the output would show it, for where it goes elsewhere. */
  clean(text: string): string
  /** Seconds that each finished step took, by title. */
  readonly timings: Record<string, number>
  /** The step that is running, or that failed. */
  readonly current: string | undefined
}

export type StepMode = 'whole' | 'always'

type Options = {
  stdout?: Stream
  stderr?: Stream
  env?: Record<string, string | undefined>
  heartbeatSeconds?: number
  /** Aborted when the run is to stop at the next safe point. */
  signal?: AbortSignal
}

/**
 * Progress goes to stderr, results to stdout. On a terminal the running step is one live line; elsewhere there is one
 * line per step, with a sign of life every 15 s; GitHub Actions gets groups.
 */
export function createLog({ stdout = process.stdout, stderr = process.stderr, ...options }: Options = {}): Log {
  const env = options.env ?? process.env
  const inActions = env.GITHUB_ACTIONS === 'true'
  const live = stderr.isTTY === true && env.TERM !== 'dumb' && !inActions
  // chalk reads neither NO_COLOR nor TERM=dumb (chalk 5.6, measured).
  if (env.NO_COLOR || env.TERM === 'dumb' || !stderr.isTTY) chalk.level = 0

  let redact = (text: string) => text
  let current: string | undefined
  let drawn = false
  let far = ''
  const timings: Record<string, number> = {}

  const erase = () => {
    if (drawn) stderr.write('\r\x1b[2K')
    drawn = false
  }
  const line = (text: string) => {
    erase()
    stderr.write(`${redact(text)}\n`)
  }

  async function step<T>(title: string, work: () => Promise<T>, mode?: StepMode): Promise<T> {
    const started = performance.now()
    const elapsed = () => (performance.now() - started) / 1000
    // What makes good for a failed step does not become the step that failed.
    if (mode !== 'always') current = title
    if (inActions) stderr.write(`::group::${title}\n`)
    const draw = () => {
      erase()
      stderr.write(
        redact(`${chalk.cyan('…')} ${title} ${chalk.dim([seconds(elapsed()), far].filter(Boolean).join(' · '))}`),
      )
      drawn = true
    }
    const timer = setInterval(
      live ? draw : () => line(`… ${[title, far].filter(Boolean).join(': ')}, ${seconds(elapsed())} so far`),
      live ? 100 : (options.heartbeatSeconds ?? 15) * 1000,
    )
    if (live) draw()
    let ok = false
    try {
      const value = await untilAborted(work, options.signal, mode)
      ok = true
      return value
    } finally {
      clearInterval(timer)
      far = ''
      timings[title] = Math.round(elapsed() * 1000) / 1000
      line(`${ok ? chalk.green('✔') : chalk.red('✘')} ${title} ${chalk.dim(seconds(elapsed()))}`)
      if (inActions) stderr.write('::endgroup::\n')
      if (ok && mode !== 'always') current = undefined
    }
  }

  return {
    step,
    timings,
    get current() {
      return current
    },
    result: (text) => {
      erase()
      stdout.write(`${redact(text)}\n`)
    },
    say: line,
    progress: (text) => {
      far = text
    },
    warn: (text) => line(`${chalk.yellow('!')} ${text}`),
    clean: (text) => redact(text),
    hide: (next) => {
      redact = next
    },
  }
}

function untilAborted<T>(work: () => Promise<T>, signal?: AbortSignal, mode?: StepMode): Promise<T> {
  if (!signal || mode === 'always') return work()
  const interrupted = () => new Stop('Interrupted.', [], EXIT.interrupted)
  if (signal.aborted) return Promise.reject(interrupted())
  if (mode === 'whole') return work()
  return new Promise((resolve, reject) => {
    const stop = () => reject(interrupted())
    signal.addEventListener('abort', stop, { once: true })
    work()
      .then(resolve, reject)
      .finally(() => signal.removeEventListener('abort', stop))
  })
}

/** '0.4 s', '12.3 s', '4 min 32 s' */
export function seconds(value: number): string {
  if (value < 60) return `${value.toFixed(1)} s`
  const whole = Math.round(value)
  return `${Math.floor(whole / 60)} min ${whole % 60} s`
}
