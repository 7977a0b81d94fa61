import { EXIT, Stop } from './errors.ts'
import type { Host } from './host.ts'
import { type Command, script, sh } from './shell.ts'
import { connect, type SshTarget } from './ssh.ts'

/** sudo forgets the variable that says where the connection comes from. */
const asRoot = (command: Command) => sh`sudo -n SSH_CONNECTION="$SSH_CONNECTION" sh -c ${command.shell}`

/** The same host, with every command run by root through sudo. */
const throughSudo = (host: Host): Host => ({
  ...host,
  read: (command, options) => host.read(asRoot(command), options),
  write: (command, options) => host.write(asRoot(command), options),
  probe: (command, options) => host.probe(asRoot(command), options),
})

/**
 * Opens a connection on which everything may be done: root's own, or another user's who may use sudo without a password.
 * @throws Stop when the login is refused, or is not root's and sudo refuses it
 */
export async function connectAdmin(target: SshTarget, dryRun?: (command: Command) => void): Promise<Host> {
  const host = await connect(target, dryRun)
  if (target.user === 'root') return host
  if ((await host.probe(script('sudo -n true'))).code === 0) return throughSudo(host)
  await host.close()
  throw new Stop(
    `This needs root, and the login on ${target.host} is ${target.user}, whom sudo does not let through without a password.`,
    ['Set SSH_ADMIN_USER to root, or to a user who may: RUNBOOK.md, "A new server".'],
    EXIT.failed,
  )
}

/**
 * As `connectAdmin`; on a server where the admin user does not exist yet, as root.
 * @throws Stop that says what to do when neither gets in
 */
export async function connectFirst(target: SshTarget, dryRun?: (command: Command) => void): Promise<Host> {
  try {
    return await connectAdmin(target, dryRun)
  } catch (error) {
    if (!(error instanceof Stop) || !/refused the key/.test(error.message)) throw error
    if (target.user === 'root') {
      error.next.push(
        "Root's login may be switched off already: set SSH_ADMIN_USER to a user who may use sudo without a password.",
      )
      throw error
    }
    return await connectAdmin({ ...target, user: 'root' }, dryRun).catch(() => {
      throw error
    })
  }
}
