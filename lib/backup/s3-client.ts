import { readFileSync } from 'node:fs'
import type { IncomingMessage } from 'node:http'
import { Agent } from 'node:https'
import type { ObjectStoreSettings } from '../settings.ts'

/** Parts of an upload in flight at once; with 16 MiB parts this measured 264 MB of memory over TLS. */
export const QUEUE = 4
/** With their pauses these bridge about ten seconds of a store that refuses, and six time limits of one that hangs. */
const ATTEMPTS = 6

/**
 * The SDK's client for any server that speaks S3. The SDK is loaded here, so that scripts that need no bucket start as
 * fast as before. Checksums only where S3 requires them: Wasabi refused the SDK's own CRC32 on parts; every part is signed
 * with its SHA-256 anyway.
 * @returns with the client, what the store's clock said in its last answer
 */
export async function s3Client(settings: ObjectStoreSettings) {
  // Node 20 is supported until its users have left it.
  process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED ??= 'true'
  const s3 = await import('@aws-sdk/client-s3')
  const timeout = settings.S3_TIMEOUT * 1000
  const client = new s3.S3Client({
    endpoint: settings.S3_ENDPOINT,
    region: settings.S3_REGION,
    forcePathStyle: true,
    credentials: { accessKeyId: settings.S3_ACCESS_KEY_ID, secretAccessKey: settings.S3_SECRET_ACCESS_KEY },
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    maxAttempts: ATTEMPTS,
    requestHandler: {
      connectionTimeout: Math.min(timeout, 10_000),
      requestTimeout: timeout,
      // Without it the time limit is only a warning in the log, and a black hole hangs for ever (measured).
      throwOnRequestTimeout: true,
      // An agent, not its options: for large bodies the SDK makes one of its own from options, and that knows no CA.
      httpsAgent: new Agent({
        keepAlive: true,
        maxSockets: 2 * QUEUE,
        ...(settings.S3_CA_FILE ? { ca: readFileSync(settings.S3_CA_FILE) } : {}),
      }),
    },
  })
  let lastDate: string | undefined
  client.middlewareStack.add(
    (next, { commandName }) =>
      async (args) => {
        const answer = await next(args)
        const { headers, body, statusCode } = answer.response as Partial<Answer>
        lastDate = headers?.date ?? lastDate
        // Objects are streams, whose reader may be slow; who reads them has a limit of its own.
        const isObject = commandName === 'GetObjectCommand' && (statusCode ?? 0) < 300
        if (body && !isObject) endInSilence(timeout, body)
        return answer
      },
    { step: 'deserialize', name: 'kgcAnswer', priority: 'low' },
  )
  return { s3, client, lastDate: () => lastDate }
}

type Answer = { headers: Record<string, string>; body: IncomingMessage; statusCode: number }

/**
 * The SDK's time limit ends with the headers: a listing that stops in the middle would be waited for for ever (measured).
 * One that comes slowly is waited for.
 */
function endInSilence(timeout: number, body: IncomingMessage): void {
  const silence = Object.assign(new Error(`the answer stopped in the middle for ${timeout / 1000} s`), {
    name: 'TimeoutError',
  })
  let before = body.socket?.bytesRead
  const timer = setInterval(() => {
    const now = body.socket?.bytesRead
    if (now === before && !body.complete) body.destroy(silence)
    before = now
  }, timeout)
  timer.unref()
  body.once('close', () => clearInterval(timer))
}
