import { type Host, hostOver, type Transport } from './host.ts'
import type { Command } from './shell.ts'

/** This machine, through zx. */
export function localHost(dryRun?: (command: Command) => void): Host {
  return hostOver(transport, dryRun)
}

const transport: Transport = {
  name: 'this machine',
  async exec(command, { timeout, input, onLine }) {
    const { $ } = await import('zx')
    const run = $({
      shell: '/bin/sh',
      prefix: '',
      quiet: true,
      nothrow: true,
      timeout: `${timeout}s`,
      input: input ?? '',
    })
    const process = run([command.shell] as unknown as TemplateStringsArray)
    if (onLine) for await (const line of process) onLine(line)
    const { exitCode, stdout, stderr } = await process
    return { code: exitCode, stdout, stderr }
  },
  async close() {},
}
