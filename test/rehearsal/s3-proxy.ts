import { readFileSync } from 'node:fs'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import { request } from 'node:https'
import type { AddressInfo } from 'node:net'
import { inState, RUNNER_ADDRESS, S3 } from './names.ts'

/** What is done to a request on its way to the S3 server. */
export type Fault =
  | 'pass'
  /** The connection breaks before the server hears of it. */
  | 'cut'
  /** The server does what it was asked to, and its answer is lost. */
  | 'lose-answer'
  /** Nothing, for ever. */
  | 'hang'
  | { status: number }
  | { delayMs: number }
  /** So many bytes of the answer, then nothing, for ever. */
  | { stallAfter: number }
  /** Another answer: `body` once it is whole, or its headers. */
  | { body?: (body: Buffer) => Buffer; headers?: Record<string, string> }

export type Seen = {
  method: string
  path: string
  query: URLSearchParams
  headers: IncomingHttpHeaders
  count: number
}

/**
 * Stands between a client and the S3 server, and breaks what it is told to. Plain HTTP; the request itself goes on unchanged.
 * @param decide what happens to each request; `count` says how many of its kind (method, kind of object, query's names) came before
 */
export async function faultyS3(decide: (seen: Seen) => Fault) {
  const counts = new Map<string, number>()
  const ca = readFileSync(inState('ca.pem'))
  const server = createServer((asked, answer) => {
    const url = new URL(asked.url ?? '/', 'http://s3')
    const kind = `${asked.method} ${[...url.searchParams.keys()].sort()}`
    const count = counts.get(kind) ?? 0
    counts.set(kind, count + 1)
    const { method = '', headers } = asked
    const fault = decide({ method, path: url.pathname, query: url.searchParams, headers, count })
    if (fault === 'cut') return asked.socket.destroy()
    if (fault === 'hang') return asked.resume()
    if (typeof fault === 'object' && 'status' in fault) {
      asked.resume()
      return asked.on('end', () => answer.writeHead(fault.status).end())
    }
    const wait = typeof fault === 'object' && 'delayMs' in fault ? fault.delayMs : 0
    return setTimeout(() => forward(asked, answer, fault, ca), wait)
  })
  server.keepAliveTimeout = 60_000
  await new Promise<void>((resolve) => server.listen(0, RUNNER_ADDRESS, resolve))
  return {
    endpoint: `http://${RUNNER_ADDRESS}:${(server.address() as AddressInfo).port}`,
    close: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

function forward(asked: IncomingMessage, answer: ServerResponse, fault: Fault, ca: Buffer): void {
  const { hostname } = new URL(S3.endpoint)
  const options = { hostname, method: asked.method, path: asked.url, headers: asked.headers, ca }
  const onward = request(options, (got) => {
    if (fault === 'lose-answer') {
      got.resume()
      got.on('end', () => asked.socket.destroy())
      return
    }
    if (typeof fault === 'object' && 'stallAfter' in fault) {
      answer.writeHead(got.statusCode ?? 502, got.headers)
      got.once('data', (chunk: Buffer) => answer.write(chunk.subarray(0, fault.stallAfter)))
      return
    }
    const change = typeof fault === 'object' && ('body' in fault || 'headers' in fault) ? fault : {}
    const headers = { ...got.headers, ...change.headers }
    if (!change.body) {
      answer.writeHead(got.statusCode ?? 502, headers)
      got.pipe(answer)
      return
    }
    const chunks: Buffer[] = []
    got.on('data', (chunk: Buffer) => chunks.push(chunk))
    got.on('end', () => {
      const body = change.body?.(Buffer.concat(chunks)) ?? Buffer.alloc(0)
      delete headers['transfer-encoding']
      answer.writeHead(got.statusCode ?? 502, { ...headers, 'content-length': String(body.length) }).end(body)
    })
  })
  onward.on('error', () => asked.socket.destroy())
  asked.on('error', () => onward.destroy())
  asked.pipe(onward)
}
