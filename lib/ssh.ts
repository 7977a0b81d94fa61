import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { StringDecoder } from 'node:string_decoder'
import type { NodeSSH } from 'node-ssh'
import { EXIT, messageOf, Stop } from './errors.ts'
import { type Host, hostOver, lineSplitter, type Transport } from './host.ts'
import { type Command, sh } from './shell.ts'

export type SshTarget = {
  host: string
  port: number
  user: string
  /** Path of the private key. */
  keyFile: string
  /** Fingerprint of the server's host key, as `ssh-keygen -lf` prints it: `SHA256:…` */
  hostKey: string
}

const CONNECT_TIMEOUT_MS = 10_000
const KEEPALIVE_MS = 5_000
const KEEPALIVE_MISSES = 4

/** What the connecting side saw of the host key, to tell a changed key from an unreachable host. */
type Seen = { fingerprint?: string }

/**
 * Opens the one connection that a run uses.
 * @throws Stop when the server does not answer within 10 s, shows another host key than the pinned one, or refuses the key
 */
export async function connect(target: SshTarget, dryRun?: (command: Command) => void): Promise<Host> {
  const { NodeSSH } = await import('node-ssh')
  const ssh = new NodeSSH()
  const seen: Seen = {}
  const privateKey = await readFile(target.keyFile, 'utf8').catch((error) => {
    throw new Stop(`SSH_KEY_FILE cannot be read: ${messageOf(error)}`, [], EXIT.usage)
  })
  try {
    await ssh.connect({
      host: target.host,
      port: target.port,
      username: target.user,
      privateKey,
      readyTimeout: CONNECT_TIMEOUT_MS,
      keepaliveInterval: KEEPALIVE_MS,
      keepaliveCountMax: KEEPALIVE_MISSES,
      // Without a verifier ssh2 accepts any key (its README, "hostVerifier").
      hostVerifier: (key: Buffer) => {
        seen.fingerprint = fingerprint(key)
        return seen.fingerprint === target.hostKey
      },
    })
  } catch (error) {
    throw explain(error, target, seen)
  }
  // ssh2 emits 'error' when the connection breaks later; the channels see it too and report it with their command.
  ssh.connection?.on('error', () => {})
  return hostOver(transportOver(ssh, target), dryRun)
}

/** OpenSSH's notation of a host key: SHA-256 in base64 without padding. */
export function fingerprint(publicKey: Buffer): string {
  return `SHA256:${createHash('sha256').update(publicKey).digest('base64').replace(/=+$/, '')}`
}

function transportOver(ssh: NodeSSH, { host }: SshTarget): Transport {
  return {
    name: host,
    async exec(command, { timeout, input, onLine }) {
      if (!ssh.isConnected()) throw new Stop(`The SSH connection to ${host} is gone.`)
      const decoder = { out: new StringDecoder(), err: new StringDecoder() }
      const text = { out: '', err: '' }
      const lines = lineSplitter(onLine ?? (() => {}))
      const take = (stream: 'out' | 'err') => (chunk: Buffer) => {
        const piece = decoder[stream].write(chunk)
        text[stream] += piece
        lines.push(piece)
      }
      // `timeout` on the server ends the command and its children; the race here covers a server that no longer answers.
      const bounded = sh`timeout -k 5 ${timeout} sh -c ${command.shell}`
      const ended = ssh.execCommand(bounded.shell, {
        ...(input === undefined ? {} : { stdin: input }),
        onStdout: take('out'),
        onStderr: take('err'),
      })
      const { code } = await Promise.race([ended, silence(timeout + 15)])
      lines.end()
      return { code, stdout: text.out, stderr: text.err }
    },
    async close() {
      ssh.dispose()
    },
  }
}

function silence(seconds: number): Promise<{ code: null }> {
  return new Promise((resolve) => {
    setTimeout(() => resolve({ code: null }), seconds * 1000).unref()
  })
}

function explain(error: unknown, target: SshTarget, seen: Seen): Stop {
  const where = `${target.user}@${target.host}:${target.port}`
  if (seen.fingerprint && seen.fingerprint !== target.hostKey) {
    return new Stop(
      `${target.host} showed the host key ${seen.fingerprint}, but SSH_HOST_KEY pins ${target.hostKey}. Nothing was sent.`,
      [
        'If the server was rebuilt: read the new fingerprint on its console with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` and put it into SSH_HOST_KEY.',
        'If it was not: somebody may be between you and the server. Do not continue from this network.',
      ],
    )
  }
  const why = messageOf(error)
  if (/authentication/i.test(why)) {
    return new Stop(`${where} refused the key in ${target.keyFile}.`, [
      `Check that its public half is in ~${target.user}/.ssh/authorized_keys on the server, and that SSH_USER is right.`,
    ])
  }
  return new Stop(`${where} did not answer: ${why}.`, [
    'Port 22 is open to admin addresses only: are you on the VPN or at a known address? A GitHub-hosted runner needs the private network.',
    `Is the server up? See the hoster's console, or \`ping ${target.host}\`.`,
  ])
}
