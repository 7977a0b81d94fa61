import { messageOf, Stop } from '../errors.ts'
import type { ObjectStoreSettings } from '../settings.ts'

type Failure = { name: string; code?: string; message: string; $metadata?: { httpStatusCode?: number } }

const asFailure = (error: unknown): Failure =>
  error instanceof Error ? (error as Error & Failure) : { name: 'Error', message: String(error) }
const statusOf = (error: unknown) => asFailure(error).$metadata?.httpStatusCode

export const isMissing = (error: unknown) =>
  ['NoSuchKey', 'NotFound'].includes(asFailure(error).name) && statusOf(error) === 404
export const isDenied = (error: unknown) => statusOf(error) === 403

/** Not every server knows every request. */
export const isUnknown = (error: unknown) => [405, 501].includes(statusOf(error) ?? 0)

/** The store refused what was asked: it is not at fault, and asking again changes nothing. */
export class Denied extends Stop {}

/** Completing an upload succeeded, its answer was lost, and the SDK asked again: the upload is gone, the object is there. */
export const isLostAnswer = (error: unknown) => asFailure(error).name === 'NoSuchUpload'

/** What each of S3's names for a failure means to the one on call, and what to do about it. */
const MEANINGS: Record<string, (settings: ObjectStoreSettings) => [string, string]> = {
  NoSuchBucket: ({ S3_BUCKET }) => [`there is no bucket ${S3_BUCKET}`, 'Check S3_BUCKET, S3_REGION and S3_ENDPOINT.'],
  InvalidAccessKeyId: () => ['it does not know the access key', 'Check S3_ACCESS_KEY_ID: was it revoked or replaced?'],
  SignatureDoesNotMatch: () => ['the secret does not fit the access key', 'Check S3_SECRET_ACCESS_KEY.'],
  ExpiredToken: () => ['the credentials have expired', 'Put new ones into S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY.'],
  QuotaExceeded: ({ S3_BUCKET }) => [`the bucket ${S3_BUCKET} is full`, 'Raise its quota, or remove old backups.'],
  AccessDenied: ({ S3_BUCKET }) => [
    `the key may not do this in ${S3_BUCKET}`,
    'It needs ListBucket, ListBucketVersions, ListBucketMultipartUploads, GetObject, GetObjectVersion, PutObject and AbortMultipartUpload.',
  ],
  RequestTimeTooSkewed: () => ["this machine's clock is wrong", 'See `timedatectl` on the server.'],
}
const BY_STATUS: Record<number, string> = { 403: 'AccessDenied', 404: 'NoSuchBucket', 507: 'QuotaExceeded' }

/** An SDK's failure in words. A failure that we explained before stays as it is. */
export function explainS3(error: unknown, settings: ObjectStoreSettings): Error {
  if (error instanceof Stop) return error
  const { name, code } = asFailure(error)
  const status = statusOf(error)
  const meaning = MEANINGS[name] ?? MEANINGS[BY_STATUS[status ?? 0] ?? '']
  if (meaning) {
    const [what, remedy] = meaning(settings)
    const Refusal = isDenied(error) ? Denied : Stop
    return new Refusal(`${settings.S3_ENDPOINT} refused: ${what} (${name}).`, [remedy])
  }
  const detail = [messageOf(error), code, status ? `HTTP ${status}` : undefined].filter(Boolean).join(', ')
  return new Stop(`${settings.S3_ENDPOINT}, bucket ${settings.S3_BUCKET}, failed: ${name}: ${detail}.`, [
    'Does it answer at all? See its status page, and try again.',
  ])
}
