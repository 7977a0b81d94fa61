import { parseArgs } from 'node:util'
import chalk from 'chalk'
import { EXIT, type ExitCode, messageOf, Stop } from './errors.ts'
import { createLog, type Log } from './log.ts'

export type Flag = { type: 'boolean' | 'string'; help: string; value?: string; short?: string }

export type Usage<F extends Record<string, Flag>> = {
  name: string
  /** What one types to run it, when it is not one of the scripts. */
  command?: string
  summary: string
  /** Names of the positional arguments, e.g. ['vN']; `required` says how many of them must be there. */
  positionals?: { names: string[]; required: number }
  flags: F
  examples: string[]
}

export type Args<F extends Record<string, Flag>> = {
  positionals: string[]
  flags: { [K in keyof F]: F[K]['type'] extends 'boolean' ? boolean : string | undefined }
}

/** Flags that every runbook has. */
export const ENV_FLAG = {
  env: { type: 'string', value: 'FILE', help: 'the configuration to use (default .env)' },
} as const
export const DRY_RUN_FLAG = {
  'dry-run': { type: 'boolean', short: 'n', help: 'run the reads, print the writes, change nothing' },
} as const

export const WAIT_FLAG = {
  wait: { type: 'string', value: 'SECONDS', help: 'wait this long for another run to end (default 0)' },
} as const

/** @throws Stop (exit 2) when --wait is not a whole number of seconds */
export function waitSeconds({ wait }: { wait: string | undefined }): number {
  if (wait === undefined) return 0
  if (/^\d{1,4}$/.test(wait)) return Number(wait)
  throw new Stop(`--wait ${wait} is not a number of seconds.`, ['Example: --wait 600'], EXIT.usage)
}

/**
 * Runs a script: parses its arguments before anything else happens, prints its errors for the one on call, sets the exit code.
 */
export async function runbook<F extends Record<string, Flag>>(
  usage: Usage<F>,
  main: (args: Args<F>, log: Log) => Promise<ExitCode>,
): Promise<void> {
  const log = createLog({ signal: interruption() })
  const args = process.argv.slice(2)
  if (args.includes('--help') || args.includes('-h')) {
    process.stdout.write(helpText(usage))
    return
  }
  try {
    process.exitCode = await main(parse(usage, args), log)
  } catch (error) {
    process.exitCode = report(error, log, args.includes('--verbose'))
    // What was interrupted may still be on its way, and would keep the process.
    if (process.exitCode === EXIT.interrupted) process.exit()
  }
}

/**
 * The first Ctrl-C (or GitHub's cancel) asks the run to stop at a safe point, the second ends it on the spot. Ending
 * anywhere is safe for the site; the first way also says what serves.
 */
function interruption(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(EXIT.interrupted)
      process.stderr.write(`\n${name}: stopping at a safe point. Once more to leave at once.\n`)
      controller.abort()
    })
  }
  return controller.signal
}

export function parse<F extends Record<string, Flag>>(usage: Usage<F>, args: string[]): Args<F> {
  const options = { verbose: { type: 'boolean' as const }, ...usage.flags }
  const known = Object.keys(options)
  for (const arg of args) {
    const name = /^--(?:no-)?([^=]+)/.exec(arg)?.[1]
    if (name && !known.includes(name)) throw usageError(usage, `There is no option --${name}.`, nearest(name, known))
  }
  let parsed: ReturnType<typeof parseArgs>
  try {
    parsed = parseArgs({ args, options, allowPositionals: true, strict: true })
  } catch (error) {
    throw usageError(usage, messageOf(error))
  }
  const { names, required } = usage.positionals ?? { names: [], required: 0 }
  if (parsed.positionals.length < required)
    throw usageError(usage, `The argument ${names[parsed.positionals.length]} is missing.`)
  if (parsed.positionals.length > names.length) {
    throw usageError(usage, `Unexpected argument '${parsed.positionals[names.length]}'.`)
  }
  const flags = Object.fromEntries(
    Object.entries(usage.flags).map(([name, flag]) => [
      name,
      parsed.values[name] ?? (flag.type === 'boolean' ? false : undefined),
    ]),
  )
  return { positionals: parsed.positionals, flags: flags as Args<F>['flags'] }
}

export function helpText<F extends Record<string, Flag>>(usage: Usage<F>): string {
  const rows = Object.entries(usage.flags).map(([name, flag]): [string, string] => [
    `${flag.short ? `-${flag.short}, ` : ''}--${name}${flag.type === 'string' ? ` ${flag.value ?? 'VALUE'}` : ''}`,
    flag.help,
  ])
  rows.push(['--verbose', 'stack traces of unexpected errors'], ['-h, --help', 'this text'])
  const width = Math.max(...rows.map(([left]) => left.length)) + 2
  return `${usage.summary}

Usage: ${commandOf(usage)} ${synopsis(usage)}

${rows.map(([left, right]) => `  ${left.padEnd(width)}${right}`).join('\n')}

Examples:
${usage.examples.map((example) => `  ${commandOf(usage)} ${example}`.trimEnd()).join('\n')}

Exit codes: 0 done · 1 failed, what served before still serves · 2 wrong usage or configuration · 3 another run holds the
lock · 4 failed after the switch and was switched back · 5 needs a human · 130 interrupted
`
}

const commandOf = ({ name, command }: { name: string; command?: string }) => command ?? `npx tsx scripts/${name}.ts`

function synopsis<F extends Record<string, Flag>>({ positionals }: Usage<F>): string {
  const names = positionals?.names.map((name, index) => (index < positionals.required ? name : `[${name}]`)) ?? []
  return [...names, '[options]'].join(' ')
}

function usageError<F extends Record<string, Flag>>(usage: Usage<F>, problem: string, meant?: string): Stop {
  const hint = meant ? ` Did you mean --${meant}?` : ''
  return new Stop(`${problem}${hint}`, [`${commandOf(usage)} --help`], EXIT.usage)
}

/** The known word that shares the most letters with a mistyped one, if any is near. */
export function nearest(word: string, known: string[]): string | undefined {
  const scored = known.map((candidate) => ({ candidate, distance: editDistance(word, candidate) }))
  const best = scored.sort((a, b) => a.distance - b.distance)[0]
  return best && best.distance <= Math.max(2, word.length / 3) ? best.candidate : undefined
}

/** Levenshtein's distance. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const replace = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(replace, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}

/** Prints a failure: what failed and where, then what to type next. Returns the exit code. */
function report(error: unknown, log: Log, verbose: boolean): ExitCode {
  const step = log.current ? ` at step "${log.current}"` : ''
  log.say(`${chalk.red.bold('Failed')}${step}: ${messageOf(error)}`)
  if (process.env.GITHUB_ACTIONS === 'true') log.say(`::error::${messageOf(error).split('\n')[0]}`)
  if (error instanceof Stop) {
    for (const hint of error.next) log.say(`${chalk.bold('Next:')} ${hint}`)
    return error.code
  }
  if (verbose && error instanceof Error) log.say(error.stack ?? '')
  else log.say('This was not expected. Run again with --verbose for the stack trace.')
  return EXIT.failed
}
