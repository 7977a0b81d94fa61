import type { Readable } from 'node:stream'
import { Stop } from './errors.ts'
import type { Command } from './shell.ts'

export type RunOptions = {
  /** Seconds until the command is killed. Default 60. */
  timeout?: number
  /** What the command reads on stdin: the only way a secret travels. */
  input?: string | Readable
  /** Called with every complete line of stdout and stderr as it arrives. */
  onLine?: (line: string) => void
}

export type Result = {
  /** Null when the connection or the process died before it could say. */
  code: number | null
  stdout: string
  stderr: string
}

/** Runs a shell command somewhere and says how it ended; throws only when it could not be run at all. */
export type Transport = {
  readonly name: string
  exec(command: Command, options: Required<Pick<RunOptions, 'timeout'>> & RunOptions): Promise<Result>
  close(): Promise<void>
}

/** A machine to work on: the server over SSH or this one, behind the same three verbs. */
export type Host = {
  readonly name: string
  /** Runs what changes nothing, in a dry run too. Returns stdout without trailing whitespace. Throws unless the exit code is 0. */
  read(command: Command, options?: RunOptions): Promise<string>
  /** Runs what changes something; a dry run prints it exactly as it would run and returns ''. Throws unless the exit code is 0. */
  write(command: Command, options?: RunOptions): Promise<string>
  /** Like `read`, for commands whose failure is an answer: never throws on an exit code. */
  probe(command: Command, options?: RunOptions): Promise<Result>
  close(): Promise<void>
}

export class CommandFailed extends Stop {
  constructor(
    readonly host: string,
    readonly command: Command,
    readonly result: Result,
    timeout: number,
  ) {
    super(
      [
        `A command on ${host} ${describeEnd(result.code, timeout)}:`,
        indent(command.shell),
        ...(result.stderr.trim() || result.stdout.trim() ? ['It printed:'] : []),
        indent(lastLines(result.stderr.trim() || result.stdout.trim(), 30)),
      ]
        .filter(Boolean)
        .join('\n'),
    )
    this.name = 'CommandFailed'
  }
}

const DEFAULT_TIMEOUT = 60

/**
 * @param dryRun when set, `write` hands each command to it instead of running it
 */
export function hostOver(transport: Transport, dryRun?: (command: Command) => void): Host {
  const probe = (command: Command, options: RunOptions = {}) =>
    transport.exec(command, { timeout: DEFAULT_TIMEOUT, ...options })

  const read = async (command: Command, options: RunOptions = {}) => {
    const result = await probe(command, options)
    if (result.code !== 0) {
      throw new CommandFailed(transport.name, command, result, options.timeout ?? DEFAULT_TIMEOUT)
    }
    return result.stdout.trimEnd()
  }

  const write: Host['read'] = async (command, options) => {
    if (!dryRun) return read(command, options)
    dryRun(command)
    return ''
  }

  return { name: transport.name, read, write, probe, close: () => transport.close() }
}

/** Cuts a stream of chunks into lines. A last line without its newline comes out with `end`. */
export function lineSplitter(onLine: (line: string) => void): { push(chunk: string): void; end(): void } {
  let rest = ''
  return {
    push(chunk) {
      const lines = (rest + chunk).split(/\r?\n|\r/)
      rest = lines.pop() ?? ''
      for (const line of lines) onLine(line)
    },
    end() {
      if (rest) onLine(rest)
      rest = ''
    },
  }
}

function describeEnd(code: number | null, timeout: number): string {
  if (code === null) return 'ended without an exit code, so the connection or the process died'
  if (code === 124 || code === 137)
    return `was stopped, probably after its time limit of ${timeout} s (exit code ${code})`
  return `failed with exit code ${code}`
}

const indent = (text: string) => text.replace(/^/gm, '  ')
const lastLines = (text: string, count: number) => text.split('\n').slice(-count).join('\n')
