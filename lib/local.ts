import { type Host, hostOver, lineSplitter, type Transport } from './host.ts'
import type { Command } from './shell.ts'

/** This machine, through zx. */
export function localHost(dryRun?: (command: Command) => void): Host {
  return hostOver(transport, dryRun)
}

const transport: Transport = {
  name: 'this machine',
  async exec(command, { timeout, input, onLine }) {
    const { $ } = await import('zx/core')
    const run = $({
      shell: '/bin/sh',
      prefix: '',
      quiet: true,
      nothrow: true,
      timeout: `${timeout}s`,
      input: input ?? '',
    })
    const process = run([command.shell] as unknown as TemplateStringsArray)
    if (onLine) {
      for (const stream of [process.stdout, process.stderr]) {
        const lines = lineSplitter(onLine)
        stream.on('data', (chunk) => lines.push(String(chunk)))
        stream.on('end', lines.end)
      }
    }
    const { exitCode, stdout, stderr } = await process
    return { code: exitCode, stdout, stderr }
  },
  async close() {},
}
