// What every stand-in needs: its variables, a polite HTTP server, and an orderly end.
import type { IncomingMessage, Server, ServerResponse } from 'node:http'

/** The variables that the real program cannot do without. A missing one ends this one too, by name. */
export function required<const Name extends string>(...names: Name[]): Record<Name, string> {
  const missing = names.filter((name) => !process.env[name])
  if (missing.length > 0) fail(`not set: ${missing.join(', ')}`)
  return Object.fromEntries(names.map((name) => [name, process.env[name]])) as Record<Name, string>
}

export function fail(why: string): never {
  console.error(why)
  process.exit(1)
}

export function message(error: unknown): string {
  if (error instanceof AggregateError) return error.errors.map(message).join('; ')
  return error instanceof Error ? error.message : String(error)
}

export function send(
  response: ServerResponse,
  status: number,
  body: string | object,
  headers: Record<string, string> = {},
) {
  const [type, text] =
    typeof body === 'string' ? ['text/plain; charset=utf-8', body] : ['application/json', JSON.stringify(body)]
  response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(text), ...headers }).end(text)
}

export const html = { 'content-type': 'text/html; charset=utf-8' }

export async function readBody(request: IncomingMessage, limit = 1_000_000): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > limit) throw new Error('body too large')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

export function pathOf(request: IncomingMessage): URL {
  return new URL(request.url ?? '/', 'http://stand-in')
}

export function listen(server: Server, port: number, address = '0.0.0.0') {
  // Longer than nginx keeps its side open, so that it never sends into a connection that is just being closed.
  server.keepAliveTimeout = 75_000
  server.headersTimeout = 80_000
  server.listen(port, address, () => console.log(`listening on ${address}:${port}`))
}

/** Takes no new requests and finishes those in progress. */
export function close(server: Server): Promise<void> {
  const sweep = setInterval(() => server.closeIdleConnections(), 100)
  return new Promise((done) =>
    server.close(() => {
      clearInterval(sweep)
      done()
    }),
  )
}

/** Tells every WebSocket that its server goes away; who does not answer within 3 s is cut off. */
export function closeSockets(sockets: Iterable<{ close(code: number, reason: string): void; terminate(): void }>) {
  for (const socket of sockets) socket.close(1001, 'going away')
  setTimeout(() => {
    for (const socket of sockets) socket.terminate()
  }, 3_000).unref()
}

/** On SIGTERM or SIGINT finishes the work in hand, within 35 seconds (Compose gives the backend 40), and exits 0. */
export function onStop(finish: () => Promise<unknown>) {
  let stopping = false
  const stop = (signal: string) => {
    if (stopping) return
    stopping = true
    console.log(`${signal}: stopping`)
    setTimeout(() => fail('not done after 35 s'), 35_000).unref()
    finish().then(
      () => process.exit(0),
      (error) => fail(message(error)),
    )
  }
  process.on('SIGTERM', stop).on('SIGINT', stop)
}

export function timeout<T>(work: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: no answer in ${ms} ms`)), ms)
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}

export const pause = (ms: number) => new Promise((done) => setTimeout(done, ms))
