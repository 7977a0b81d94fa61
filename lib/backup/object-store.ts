import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import { Stop } from '../errors.ts'
import type { ObjectStoreSettings } from '../settings.ts'
import { explainS3, isLostAnswer, isMissing } from './object-store-errors.ts'
import { type Range, readObject } from './read-object.ts'
import { QUEUE, s3Client } from './s3-client.ts'
import * as versions from './versions.ts'

/** S3 allows 10,000 parts; the facts of Wasabi and others differ, so a tenth is kept free. */
const MOST_PARTS = 9_000
const SMALLEST_PART = 16 * 1024 ** 2

export type StoredObject = { key: string; size: number; modified: Date; versionId?: string }
export type Put = { bytes: number; sha256: string; parts: number; partSize: number; versionId?: string }
export type ObjectStore = Awaited<ReturnType<typeof openStore>>

/**
 * Bytes of a part such that a stream of about this size fits into S3's 10,000 parts. The library's own 5 MiB end at 48.8 GiB.
 * @param expected bytes; the stream may be a fifth longer
 */
export const partSizeFor = (expected: number) => Math.max(SMALLEST_PART, Math.ceil((expected * 1.2) / MOST_PARTS))

/**
 * The bucket, over any server that speaks S3.
 * @param lockDays what is stored cannot be removed for so long, also not with a stolen key; 0 for no lock
 */
export async function openStore(settings: ObjectStoreSettings, lockDays = 0) {
  const opened = await s3Client(settings)
  const { s3, client, lastDate } = opened
  const Bucket = settings.S3_BUCKET
  const locked = () =>
    lockDays === 0
      ? {}
      : {
          ObjectLockMode: 'GOVERNANCE' as const,
          ObjectLockRetainUntilDate: new Date(Date.now() + lockDays * 24 * 3600_000),
          // Required on locked objects: a checksum, of which every server knows this one.
          ChecksumAlgorithm: 'SHA256' as const,
        }
  const explained = <T>(work: Promise<T>) =>
    work.catch((error: unknown) => {
      throw explainS3(error, settings)
    })
  const send = ((command: Parameters<typeof client.send>[0]) => explained(client.send(command))) as typeof client.send

  /** @returns undefined when there is no such object */
  async function head(key: string): Promise<{ size: number; versionId?: string } | undefined> {
    try {
      const { ContentLength = 0, VersionId } = await client.send(new s3.HeadObjectCommand({ Bucket, Key: key }))
      return { size: ContentLength, ...(VersionId ? { versionId: VersionId } : {}) }
    } catch (error) {
      if (isMissing(error)) return undefined
      throw explainS3(error, settings)
    }
  }

  /**
   * Stores a stream under a new name. The object appears whole or not at all; when it fails nothing is left behind.
   * @param expected bytes, about; for the size of the parts
   * @param onBytes told how many bytes were read so far
   */
  async function put(
    key: string,
    body: AsyncIterable<Uint8Array>,
    { expected = 0, onBytes = (_: number) => {} } = {},
  ): Promise<Put> {
    const { Upload } = await import('@aws-sdk/lib-storage')
    const hash = createHash('sha256')
    const partSize = partSizeFor(expected)
    let bytes = 0
    let whole = false
    let cause: unknown
    async function* counted() {
      try {
        for await (const chunk of body) {
          hash.update(chunk)
          bytes += chunk.length
          onBytes(bytes)
          yield chunk
        }
        whole = true
      } catch (error) {
        cause = error
        throw error
      }
    }
    const upload = new Upload({
      client,
      params: { Bucket, Key: key, Body: Readable.from(counted(), { objectMode: false }), ...locked() },
      partSize,
      queueSize: QUEUE,
      // It would try to abort by itself, and report a refused abort instead of what went wrong (measured).
      leavePartsOnError: true,
    })
    try {
      await upload.done()
    } catch (error) {
      const arrived = whole && isLostAnswer(error) ? await head(key).catch(() => undefined) : undefined
      if (arrived?.size !== bytes) {
        await upload.abort().catch(() => {})
        await abortUploads(key).catch(() => {})
        throw cause ?? explainS3(error, settings)
      }
    }
    const found = await head(key)
    if (found?.size !== bytes)
      throw new Stop(`${key} was stored with ${found?.size ?? 'no'} bytes, but ${bytes} were sent.`)
    return {
      ...{ bytes, sha256: hash.digest('hex'), parts: Math.max(1, Math.ceil(bytes / partSize)), partSize },
      ...(found.versionId ? { versionId: found.versionId } : {}),
    }
  }

  /** Stores a small text, whole or not at all. */
  async function putText(key: string, body: string): Promise<void> {
    await send(new s3.PutObjectCommand({ Bucket, Key: key, Body: body, ContentType: 'application/json', ...locked() }))
  }

  /** The object as a stream; it fails when nothing came for the time limit. Whether it is whole is for its hash to say. */
  async function* get(key: string, range: Range = {}): AsyncGenerator<Buffer> {
    try {
      yield* readObject(opened, settings, key, range)
    } catch (error) {
      throw explainS3(error, settings)
    }
  }

  /** @returns undefined when there is no such object */
  async function getText(key: string, versionId?: string): Promise<string | undefined> {
    try {
      return Buffer.concat(await Readable.from(readObject(opened, settings, key, { versionId })).toArray()).toString()
    } catch (error) {
      if (isMissing(error)) return undefined
      throw explainS3(error, settings)
    }
  }

  /** All objects below a prefix. */
  async function list(Prefix: string): Promise<StoredObject[]> {
    const found: StoredObject[] = []
    const pages = s3.paginateListObjectsV2({ client }, { Bucket, Prefix })
    try {
      for await (const { Contents = [] } of pages)
        for (const { Key = '', Size = 0, LastModified = new Date(0) } of Contents)
          found.push({ key: Key, size: Size, modified: LastModified })
    } catch (error) {
      throw explainS3(error, settings)
    }
    return found
  }

  const bucket = { ...opened, Bucket }
  const remove = (prefix: string, first: string, signal?: AbortSignal) =>
    explained(versions.removeAll(bucket, prefix, first, signal))
  /** @param isDead whether nobody works on that upload any more; all, when it is not given */
  const abortUploads = (prefix: string, isDead: (key: string, begun: Date) => boolean = () => true) =>
    explained(versions.abortUploads(bucket, prefix, isDead))
  const hidden = (prefix: string, name: string) => explained(versions.hiddenBelow(bucket, prefix, name))

  /**
   * Asks for the bucket: by a listing, since the refusal of a HEAD has no reason in it.
   * @returns the store's clock minus ours, in seconds
   */
  async function check(): Promise<number> {
    await send(new s3.ListObjectsV2Command({ Bucket, Prefix: settings.S3_PREFIX, MaxKeys: 1 }))
    const date = lastDate()
    return date ? Math.round((Date.parse(date) - Date.now()) / 1000) : 0
  }

  return {
    settings,
    check,
    head,
    put,
    putText,
    get,
    getText,
    list,
    remove,
    abortUploads,
    hidden,
    close: () => client.destroy(),
  }
}
