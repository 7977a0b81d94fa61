import type { Readable } from 'node:stream'
import { Stop } from '../errors.ts'
import type { ObjectStoreSettings } from '../settings.ts'
import type { s3Client } from './s3-client.ts'

/** The byte to begin with, and the version that was stored, also when another one hides it. */
export type Range = { from?: number; versionId?: string | undefined }

/**
 * The bytes of an object. Time in which its reader is busy does not count.
 * @throws the SDK's own error, or Stop when the store sent nothing for S3_TIMEOUT
 */
export async function* readObject(
  { client, s3 }: Awaited<ReturnType<typeof s3Client>>,
  { S3_BUCKET: Bucket, S3_ENDPOINT, S3_TIMEOUT }: ObjectStoreSettings,
  key: string,
  { from = 0, versionId }: Range = {},
): AsyncGenerator<Buffer> {
  const part = from > 0 ? { Range: `bytes=${from}-` } : {}
  const { Body } = await client.send(new s3.GetObjectCommand({ Bucket, Key: key, VersionId: versionId, ...part }))
  const stream = Body as Readable
  const silence = () =>
    stream.destroy(new Stop(`${S3_ENDPOINT} sent nothing for ${S3_TIMEOUT} s in the middle of ${key}.`))
  const wait = () => setTimeout(silence, S3_TIMEOUT * 1000)
  let timer = wait()
  try {
    for await (const chunk of stream) {
      clearTimeout(timer)
      yield chunk as Buffer
      timer = wait()
    }
  } finally {
    clearTimeout(timer)
    stream.destroy()
  }
}
