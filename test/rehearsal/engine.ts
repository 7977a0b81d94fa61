import { spawn } from 'node:child_process'
import { existsSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Stop } from '../../lib/errors.ts'
import { localHost } from '../../lib/local.ts'
import type { Log } from '../../lib/log.ts'
import { type Command, sh } from '../../lib/shell.ts'
import { inState } from './names.ts'

export const local = localHost()
const DOCKERD_PID = inState('dockerd.pid')
/** Commands that the rehearsal needs, and the Debian package of each. */
const TOOLS = {
  docker: 'docker.io',
  dockerd: 'docker.io',
  openssl: 'openssl',
  git: 'git',
  'mkfs.ext4': 'e2fsprogs',
  curl: 'curl',
}

/** Runs a docker command on this machine's own engine. */
export const docker = (rest: Command, timeout = 120) => local.read(sh`docker ${rest}`, { timeout })

const works = async (command: Command) => (await local.probe(command)).code === 0
const isRoot = process.getuid?.() === 0

/** Makes sure that Docker answers on this machine. Says what it will install or start before it does. */
export async function ensureEngine(log: Log): Promise<void> {
  const missing: string[] = []
  for (const [tool, debianPackage] of Object.entries(TOOLS)) {
    const needed = tool !== 'dockerd' || !(await works(sh`docker info`))
    if (needed && !(await works(sh`command -v ${tool}`))) missing.push(debianPackage)
  }
  if (missing.length > 0) await log.step('Install what is missing', () => install(log, [...new Set(missing)]))
  if (!(await works(sh`docker info`))) await log.step('Start Docker', () => startDockerd(log))
}

/** Installs Debian packages when this user may, else says what to install. */
export async function install(log: Log, packages: string[]): Promise<void> {
  if (!isRoot || !(await works(sh`command -v apt-get`))) {
    throw new Stop(`These are missing on this machine: ${packages.join(', ')}.`, [
      'Install them, or run this as root on Debian or Ubuntu, where it installs them itself.',
    ])
  }
  log.say(`  installing with apt-get: ${packages.join(' ')}`)
  await local.read(sh`apt-get update -qq`, { timeout: 300 })
  await local.read(sh`DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${packages}`, {
    timeout: 900,
  })
}

async function startDockerd(log: Log): Promise<void> {
  if (!isRoot)
    throw new Stop('Docker does not answer.', ['Start it, and check that `docker info` works for this user.'])
  if (existsSync('/run/systemd/system')) {
    await local.read(sh`systemctl start docker`)
    return
  }
  log.say(`  no systemd here, so dockerd is started by hand; its log is ${inState('dockerd.log')}`)
  const output = openSync(inState('dockerd.log'), 'a')
  const daemon = spawn('dockerd', { detached: true, stdio: ['ignore', output, output] })
  daemon.on('error', () => {})
  daemon.unref()
  writeFileSync(DOCKERD_PID, String(daemon.pid))
  for (let tries = 0; tries < 120; tries++) {
    if (await works(sh`docker info`)) return
    await sleep(500)
  }
  throw new Stop('dockerd did not start within 60 s.', [`Read ${inState('dockerd.log')}.`])
}

/** Stops the engine if it was started by `ensureEngine`. */
export async function stopOwnEngine(): Promise<void> {
  if (!existsSync(DOCKERD_PID)) return
  const pid = Number(readFileSync(DOCKERD_PID, 'utf8'))
  const name = `/proc/${pid}/comm`
  if (existsSync(name) && readFileSync(name, 'utf8').trim() === 'dockerd') process.kill(pid, 'SIGTERM')
  rmSync(DOCKERD_PID)
}
