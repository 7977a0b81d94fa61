import { isDenied, isUnknown } from './object-store-errors.ts'
import type { s3Client } from './s3-client.ts'

type Bucket = Awaited<ReturnType<typeof s3Client>> & { Bucket: string }
export type Version = { key: string; versionId: string; modified: Date; etag: string; latest: boolean; size: number }

/**
 * Removes every version of every object below a prefix; the one named first goes first.
 * @returns false when the key may not delete, a lock forbids it, or the store does not do it; nothing more is tried then
 */
export async function removeAll(
  { client, s3, Bucket }: Bucket,
  Prefix: string,
  first: string,
  signal?: AbortSignal,
): Promise<boolean> {
  const tried = new Set<string>()
  try {
    for (;;) {
      signal?.throwIfAborted()
      const page = await client.send(new s3.ListObjectVersionsCommand({ Bucket, Prefix }))
      const versions = [...(page.Versions ?? []), ...(page.DeleteMarkers ?? [])]
      if (versions.length === 0) return true
      versions.sort((a, b) => Number(b.Key === first) - Number(a.Key === first))
      // One at a time: the request for many carries a checksum that not every server knows.
      for (const { Key, VersionId } of versions) {
        const one = `${Key} ${VersionId}`
        if (tried.has(one)) return false
        tried.add(one)
        signal?.throwIfAborted()
        // Also 'null', which an object has that is older than the bucket's versions: without it, it would only be hidden.
        await client.send(new s3.DeleteObjectCommand({ Bucket, Key, ...(VersionId ? { VersionId } : {}) }))
      }
    }
  } catch (error) {
    if (isDenied(error)) return false
    throw error
  }
}

/** Aborts uploads below a prefix that were begun and never completed: they cost money and no listing shows them. */
export async function abortUploads(
  { client, s3, Bucket }: Bucket,
  Prefix: string,
  isDead: (key: string, begun: Date) => boolean,
): Promise<number> {
  let aborted = 0
  let next = {}
  for (;;) {
    const page = await client.send(new s3.ListMultipartUploadsCommand({ Bucket, Prefix, ...next }))
    for (const { Key = '', UploadId, Initiated = new Date() } of page.Uploads ?? []) {
      if (!isDead(Key, Initiated)) continue
      await client.send(new s3.AbortMultipartUploadCommand({ Bucket, Key, UploadId }))
      aborted += 1
    }
    if (!page.IsTruncated) return aborted
    next = { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker }
  }
}

/**
 * Objects that the bucket no longer shows as they were first stored: removed with their versions kept, or overwritten.
 * @returns the first version of each; undefined when the key may not list versions, or the server knows none
 */
export async function hiddenBelow(
  { client, s3, Bucket }: Bucket,
  Prefix: string,
  name: string,
): Promise<Version[] | undefined> {
  const all: Version[] = []
  let next = {}
  try {
    for (;;) {
      const page = await client.send(new s3.ListObjectVersionsCommand({ Bucket, Prefix, ...next }))
      for (const {
        Key = '',
        VersionId = '',
        LastModified = new Date(0),
        ETag = '',
        IsLatest,
        Size = 0,
      } of page.Versions ?? [])
        if (Key.endsWith(`/${name}`))
          all.push({
            ...{ key: Key, versionId: VersionId, modified: LastModified, etag: ETag },
            ...{ latest: IsLatest === true, size: Size },
          })
      if (!page.IsTruncated) return hiddenAmong(all)
      next = { KeyMarker: page.NextKeyMarker, VersionIdMarker: page.NextVersionIdMarker }
    }
  } catch (error) {
    if (isDenied(error) || isUnknown(error)) return undefined
    throw error
  }
}

/** @param versions of each object the newest first, as S3 lists them */
export function hiddenAmong(versions: Version[]): Version[] {
  const first = new Map<string, Version>()
  for (const version of versions) first.set(version.key, version)
  return [...first.values()].filter((oldest) => {
    const shown = versions.find(({ key, latest }) => key === oldest.key && latest)
    // The same content twice is an answer that was lost, and sent again.
    return shown?.etag !== oldest.etag
  })
}
