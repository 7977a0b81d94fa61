/** What a runbook's exit code tells the one who called it. RUNBOOK.md and every `--help` print this table. */
export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  locked: 3,
  rolledBack: 4,
  needsHuman: 5,
  interrupted: 130,
} as const

export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/** A failure that we can explain. It is printed without a stack: what failed, then what to type next. */
export class Stop extends Error {
  constructor(
    message: string,
    readonly next: string[] = [],
    readonly code: ExitCode = EXIT.failed,
  ) {
    super(message)
    this.name = 'Stop'
  }

  /** The same failure, with what serves now added to its message. */
  withServing(serving: string): this {
    this.message += `\n${serving}`
    return this
  }

  /** The same failure; with what to type next, unless it knows that better. */
  orNext(next: string[]): this {
    if (this.next.length === 0) this.next.push(...next)
    return this
  }
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

/** The release itself is at fault, not the server or the network: it is remembered as bad. */
export class BadRelease extends Stop {}

export const isInterruption = (error: unknown): boolean => error instanceof Stop && error.code === EXIT.interrupted
