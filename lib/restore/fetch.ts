import { createHash } from 'node:crypto'
import { type FileHandle, mkdtemp, open, rm, statfs } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { gigabytes } from '../backup/catalog.ts'
import type { Stored } from '../backup/manifest.ts'
import type { ObjectStore } from '../backup/object-store.ts'
import { describeProgress, trackProgress } from '../backup/progress.ts'
import { Stop } from '../errors.ts'
import type { Log } from '../log.ts'

/** A connection that breaks is taken up where it broke, unless it brings nothing this many times in a row. */
const FRUITLESS_TRIES = 3

/**
 * Downloads one object and compares it, byte by byte through its hash, with what the backup recorded.
 * @param onBytes told how many bytes arrived so far
 * @throws Stop when it is shorter, longer or other than recorded, or cannot be had
 */
export async function download(
  store: Pick<ObjectStore, 'get'>,
  object: Stored,
  file: string,
  onBytes: (sofar: number) => void = () => {},
): Promise<void> {
  const { key, storedBytes, storedSha256, versionId } = object
  const hash = createHash('sha256')
  const target = await open(file, 'wx', 0o600)
  let size = 0
  let fruitless = 0
  let whole = false
  try {
    while (!whole) {
      const before = size
      try {
        for await (const chunk of store.get(key, { from: size, versionId })) {
          await writeAll(target, chunk, size)
          hash.update(chunk)
          size += chunk.length
          onBytes(size)
        }
        whole = true
      } catch (error) {
        fruitless = size > before ? 0 : fruitless + 1
        if (size === 0 || fruitless === FRUITLESS_TRIES) throw error
      }
    }
  } finally {
    await target.close()
  }
  if (size !== storedBytes) throw damaged(key, `it has ${size} bytes, and had ${storedBytes} when it was stored`)
  if (hash.digest('hex') !== storedSha256) throw damaged(key, 'its content is not what was stored')
}

/** At its place, so that what a failed try left is written over. */
export async function writeAll(file: Pick<FileHandle, 'write'>, chunk: Buffer, position: number): Promise<void> {
  for (let done = 0; done < chunk.length; )
    done += (await file.write(chunk, done, chunk.length - done, position + done)).bytesWritten
}

const damaged = (key: string, how: string) =>
  new Stop(`${key} is damaged: ${how}. Nothing was touched.`, ['Take another run: npx tsx scripts/restore.ts --list'])

/** Bytes free where downloads go. */
export const localFree = async (): Promise<number> => {
  const { bavail, bsize } = await statfs(tmpdir())
  return bavail * bsize
}

/**
 * Downloads dumps or other parts, still encrypted, into a folder that is gone afterwards, and proves each to be what was stored.
 * @param work gets the file of each database by its name
 */
export async function withDownloads<T>(
  log: Log,
  store: ObjectStore,
  wanted: (Stored & { name: string })[],
  work: (files: Record<string, string>) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'kgc-restore-'))
  // A name is what a manifest says: it must not lead out of the folder.
  const files = Object.fromEntries(wanted.map(({ name }, index) => [name, join(folder, `${index}-${basename(name)}`)]))
  try {
    const expected = Object.fromEntries(wanted.map(({ name, storedBytes }) => [name, storedBytes]))
    const follow = trackProgress(expected, (at) => log.progress(describeProgress(at)))
    for (const one of wanted)
      await log.step(`Download ${one.name}, ${gigabytes(one.storedBytes)}`, () =>
        download(store, one, files[one.name] ?? '', (bytes) => follow(one.name, bytes)),
      )
    return await work(files)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}
