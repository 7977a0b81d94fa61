import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import * as zlib from 'node:zlib'
import { parse } from 'dotenv'
import type { Stored } from '../backup/manifest.ts'
import { Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { RECORDS, ROOT } from '../layout.ts'
import { putFile } from '../put-file.ts'
import { parseRecords, type ReleaseRecord } from '../release/release.ts'
import { openEncrypted } from '../restore/identity.ts'
import { chain, sh } from '../shell.ts'

/** What a server needs before anything else, out of a backup. It stays in memory: it never rests on this machine. */
export type ServerSecrets = {
  tar: Buffer
  /** The lines of the new server's .env, and the names of those that were the old one's alone. */
  env: string
  leftOut: string[]
  values: Record<string, string>
  records: ReleaseRecord[]
  /** state/releases.jsonl, as it was. */
  history: string
}

/** Bytes: .env, a few files, and years of releases. */
const LARGEST = 2 ** 28
/**
 * What describes the old machine and not the stack: the group of its user, its size, and the name of its cluster's volume.
 * bootstrap-server.ts finds out what is right on the new one. The log for point in time recovery belongs to the old cluster.
 */
const OLD_MACHINE =
  /^(DEPLOY_GID|POSTGRES_VOLUME|PITR|(POSTGRES|KGC_BACKEND|BACKUP_SERVICE)_CPUS|POSTGRES_(MEMORY|SHARED_BUFFERS|EFFECTIVE_CACHE_SIZE))=/

/**
 * @param file the secrets of a backup, still encrypted
 * @throws Stop when they cannot be opened, or are not what was backed up
 */
export async function openSecrets(file: string, part: Stored, identities: string[]): Promise<ServerSecrets> {
  const chunks: Buffer[] = []
  for await (const chunk of await openEncrypted(file, identities)) chunks.push(chunk as Buffer)
  const tar = unzstd(Buffer.concat(chunks))
  if (createHash('sha256').update(tar).digest('hex') !== part.rawSha256)
    throw new Stop(`The unpacked ${part.key} is not what was backed up.`)
  return readSecrets(tar)
}

export function readSecrets(tar: Buffer): ServerSecrets {
  const text = fileOf(tar, '.env')
  if (!text) throw new Stop("There is no .env in the backup's secrets.")
  const history = fileOf(tar, RECORDS) ?? ''
  return { tar, ...envForNew(text), values: parse(text), records: parseRecords(history), history }
}

export function envForNew(text: string): Pick<ServerSecrets, 'env' | 'leftOut'> {
  const lines = text.split('\n').filter(Boolean)
  const [old, kept] = [lines.filter((line) => OLD_MACHINE.test(line)), lines.filter((line) => !OLD_MACHINE.test(line))]
  return { env: kept.map((line) => `${line}\n`).join(''), leftOut: old.map((line) => line.split('=')[0] ?? '') }
}

/** The release that served when the backup was made. */
export const servedRelease = (records: ReleaseRecord[]): ReleaseRecord | undefined =>
  records.filter(({ outcome }) => outcome === 'good').at(-1)

/** Before bootstrap-server.ts, which keeps what it finds: the variables, and the certificates with their keys. */
export async function putFirst(host: Host, { tar, env }: ServerSecrets, fromLog: boolean): Promise<void> {
  await host.write(sh`tar -x -p --numeric-owner -C ${ROOT} -f - certs`, { input: stream(tar) })
  await putFile(host, `${ROOT}/.env`, fromLog ? `${env}PITR=on\n` : env)
}

/** After it, when the user deploy exists: Redis' users, and the record of releases. */
export async function putRest(host: Host, { tar, history }: ServerSecrets): Promise<void> {
  const secrets = `${ROOT}/secrets`
  await host.write(chain(sh`tar -x -p -C ${ROOT} -f - secrets`, sh`chown -R deploy: ${secrets}`), {
    input: stream(tar),
  })
  if (history) await putFile(host, `${ROOT}/${RECORDS}`, history, { owner: 'deploy', mode: '644' })
}

const stream = (bytes: Buffer) => Readable.from([bytes])

function fileOf(tar: Buffer, name: string): string | undefined {
  const { status, stdout } = spawnSync('tar', ['-x', '-O', '-f', '-', name], { input: tar, maxBuffer: LARGEST })
  return status === 0 ? stdout.toString() : undefined
}

/** Node has it from 22.15 on; before that, the program of that name does it. */
function unzstd(packed: Buffer): Buffer {
  const own = (zlib as { zstdDecompressSync?: (bytes: Buffer) => Buffer }).zstdDecompressSync
  if (own) return own(packed)
  const { status, stdout } = spawnSync('zstd', ['-d', '-c', '-q'], { input: packed, maxBuffer: LARGEST })
  if (status === 0) return stdout
  throw new Stop(
    `The backup's secrets cannot be unpacked here: ${status === null ? 'there is no zstd' : 'zstd refuses them'}.`,
    ['Install zstd on this machine, or Node 22.15 or later.'],
  )
}
