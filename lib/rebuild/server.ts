import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { connectFirst } from '../admin.ts'
import { sshTarget } from '../config.ts'
import { EXIT, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { connect } from '../ssh.ts'
import { giveMarker, markDone } from './blank.ts'
import type { Rebuild } from './rebuild.ts'
import { putFirst, putRest, type ServerSecrets } from './secrets.ts'

/** As whoever may do everything; on a blank server that is root. */
export const connectBlank = ({ config }: Pick<Rebuild, 'config'>): Promise<Host> =>
  connectFirst(sshTarget({ ...config.server, SSH_USER: config.access.SSH_ADMIN_USER }))

/** Secrets first, since bootstrap-server.ts keeps what it finds and makes up what it does not. */
export async function makeServer(rebuild: Rebuild, secrets: ServerSecrets, fromLog: boolean): Promise<void> {
  const asAdmin = async (title: string, work: (host: Host) => Promise<unknown>) => {
    const host = await connectBlank(rebuild)
    await rebuild.log.step(title, () => work(host)).finally(() => host.close())
  }
  await asAdmin('Variables and certificates', (host) => putFirst(host, secrets, fromLog))
  await runScript(rebuild, 'bootstrap-server', ['--yes'])
  await asAdmin('Secrets', async (host) => {
    await putRest(host, secrets)
    await host.write(giveMarker)
    await host.write(markDone('server'))
  })
}

/** As the user who deploys, once there is one. */
export async function withServer<T>({ log, config }: Rebuild, work: (host: Host) => Promise<T>): Promise<T> {
  const host = await log.step('Connect again', () => connect(sshTarget(config.server)))
  return work(host).finally(() => host.close())
}

/** Another runbook, as an operator would run it: in a process of its own, with its output shown. */
export async function runScript({ env }: Rebuild, name: string, args: string[] = []): Promise<void> {
  const script = fileURLToPath(new URL(`../../scripts/${name}.ts`, import.meta.url))
  const code = await new Promise<number | null>((resolve, reject) => {
    const child = spawn(process.execPath, [...process.execArgv, script, ...args, ...(env ? ['--env', env] : [])], {
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    child.on('error', reject)
    child.on('close', resolve)
  })
  if (code !== 0)
    throw new Stop(
      `${name}.ts ended with exit code ${code}; its own words are above. What was done before it stays done.`,
      ['Put that right, then give the same command again: it goes on from there.'],
      code === EXIT.interrupted ? EXIT.interrupted : EXIT.failed,
    )
}
