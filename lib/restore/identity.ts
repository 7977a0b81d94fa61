import { createReadStream, readFileSync, statSync } from 'node:fs'
import { Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import { EXIT, messageOf, Stop } from '../errors.ts'

/**
 * Reads what opens the backups: a file as age-keygen writes it, with one or more identities.
 * @throws Stop (exit 2) when others can read it, or when there is no identity in it
 */
export function readIdentities(file: string): string[] {
  if (statSync(file).mode & 0o077)
    throw new Stop(
      `${file} opens every backup, and others on this machine can read it.`,
      [`chmod 600 ${file}`],
      EXIT.usage,
    )
  const found = readFileSync(file, 'utf8')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line.startsWith('AGE-SECRET-KEY-'))
  if (found.length > 0) return found
  throw new Stop(`There is no age identity in ${file}.`, ['A line of it begins with AGE-SECRET-KEY-1.'], EXIT.usage)
}

/** The public keys of identities: what a backup is encrypted to. */
export async function recipientsOf(identities: string[]): Promise<string[]> {
  const { identityToRecipient } = await import('age-encryption')
  return Promise.all(identities.map(identityToRecipient)).catch((error) => {
    throw new Stop(`BACKUP_IDENTITY_FILE has an identity that is damaged: ${messageOf(error)}`, [], EXIT.usage)
  })
}

/**
 * Decrypts a file as a stream; nothing of it comes to rest on this machine.
 * @throws Stop when none of the identities opens it. A damaged part makes the stream itself fail, where it is reached.
 */
export async function openEncrypted(file: string, identities: string[]): Promise<Readable> {
  const { Decrypter } = await import('age-encryption')
  const decrypter = new Decrypter()
  for (const identity of identities) decrypter.addIdentity(identity)
  const source = createReadStream(file, { highWaterMark: 1024 ** 2 })
  try {
    const opened = await decrypter.decrypt(Readable.toWeb(source) as globalThis.ReadableStream<Uint8Array>)
    return Readable.fromWeb(opened as unknown as ReadableStream)
  } catch (error) {
    source.destroy()
    throw new Stop(`The identity in BACKUP_IDENTITY_FILE does not open ${file}: ${messageOf(error)}`)
  }
}
