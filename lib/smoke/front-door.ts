import { readFileSync } from 'node:fs'
import { request } from 'node:https'
import type { TLSSocket } from 'node:tls'
import type { Front } from '../settings.ts'

export type Answer = {
  status: number
  headers: Record<string, string | string[] | undefined>
  body: string
  /** Until when the certificate that the site showed is valid. */
  certificateUntil: Date
}

export type Ask = {
  method?: string
  path?: string
  json?: unknown
  headers?: Record<string, string>
  timeoutMs?: number
}

/** Asks one of the site's hosts as a browser would: certificate checked, at FRONT_IP when the name is not to be looked up. */
export type FrontDoor = (sub: string | undefined, ask?: Ask) => Promise<Answer>

export function frontDoor(front: Front): FrontDoor {
  const ca = front.FRONT_CA_FILE ? readFileSync(front.FRONT_CA_FILE) : undefined
  return (sub, { method = 'GET', path = '/', json, headers = {}, timeoutMs = 10_000 } = {}) => {
    const host = sub ? `${sub}.${front.DOMAIN}` : front.DOMAIN
    const body = json === undefined ? undefined : JSON.stringify(json)
    return new Promise((resolve, reject) => {
      const outgoing = request({
        host: front.FRONT_IP ?? host,
        servername: host,
        port: front.FRONT_PORT,
        method,
        path,
        ...(ca ? { ca } : {}),
        agent: false,
        signal: AbortSignal.timeout(timeoutMs),
        headers: {
          host: front.FRONT_PORT === 443 ? host : `${host}:${front.FRONT_PORT}`,
          'user-agent': 'kgc-smoke-test',
          'cache-control': 'no-cache',
          ...(body === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
          ...headers,
        },
      })
      outgoing.on('error', (error) => reject(explain(error, timeoutMs)))
      outgoing.on('response', (response) => {
        const certificateUntil = new Date((response.socket as TLSSocket).getPeerCertificate().valid_to)
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('error', reject)
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            body: Buffer.concat(chunks).toString(),
            certificateUntil,
          }),
        )
      })
      outgoing.end(body)
    })
  }
}

const explain = (error: Error, timeoutMs: number) =>
  error.name === 'AbortError' || error.name === 'TimeoutError'
    ? new Error(`no answer within ${timeoutMs / 1000} s`)
    : error
