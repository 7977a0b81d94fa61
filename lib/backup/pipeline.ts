import { spawn } from 'node:child_process'
import { Readable } from 'node:stream'
import { pipeline as connect } from 'node:stream/promises'
import { Stop } from '../errors.ts'
import type { Command } from '../shell.ts'

type Options = {
  /** Names the pipeline in an error. */
  what: string
  /** Stops it: every program in it is killed. */
  signal: AbortSignal
  env?: Record<string, string>
  input?: AsyncIterable<Uint8Array>
}

const LINES_OF_ERROR = 20

/** A program ended with an error of its own. */
export class ProgramFailed extends Stop {}

/**
 * Runs programs that are connected with `|`, and gives what the last one prints. The end comes only when every one of
 * them ended with 0: a dump that dies must not look like a shorter one (without `pipefail` and without this wait, a
 * dump whose server died was stored as a good object of 71 of 1,246 MB; measured).
 * @throws Stop with what they printed on stderr, when one of them fails; nothing of the pipeline is left running
 */
export async function* output(programs: Command, { what, signal, env, input }: Options): AsyncGenerator<Buffer> {
  signal.throwIfAborted()
  const child = spawn('bash', ['-o', 'pipefail', '-c', programs.shell], {
    // A process group of its own, so that all of it can be killed.
    detached: true,
    stdio: [input ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  const kill = () => {
    try {
      if (child.pid) process.kill(-child.pid, 'SIGKILL')
    } catch {
      // It ended by itself.
    }
  }
  signal.addEventListener('abort', kill)
  let said = ''
  child.stderr?.on('data', (chunk) => {
    said = (said + chunk).split('\n').slice(-LINES_OF_ERROR).join('\n')
  })
  const ended = new Promise<string | undefined>((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('close', (code, by) => resolve(code === 0 ? undefined : by ? `was ended by ${by}` : `exit code ${code}`))
  })
  // What cannot be written is the reader's failure, and that shows in its exit code; what cannot be read is ours.
  let unread: unknown
  const fed = input && child.stdin ? connect(watched(input), child.stdin).catch(() => {}) : undefined
  async function* watched(source: AsyncIterable<Uint8Array>) {
    try {
      yield* source
    } catch (error) {
      unread = error
      kill()
    }
  }
  try {
    if (child.stdout) yield* child.stdout as AsyncIterable<Buffer>
    const failure = await ended
    await fed
    if (unread) throw unread
    signal.throwIfAborted()
    if (failure)
      throw new ProgramFailed(`${what} failed: ${failure}.${said.trim() ? ` It printed:\n${said.trim()}` : ''}`)
  } finally {
    signal.removeEventListener('abort', kill)
    kill()
    await ended
  }
}

/** All that a pipeline prints, as text without its last newline. For small outputs. */
export async function text(programs: Command, options: Options): Promise<string> {
  const chunks = await Readable.from(output(programs, options)).toArray()
  return Buffer.concat(chunks).toString('utf8').trimEnd()
}
