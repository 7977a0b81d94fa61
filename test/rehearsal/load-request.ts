import { readFileSync } from 'node:fs'
import { type Agent, request as httpsRequest } from 'node:https'
import { createSecureContext } from 'node:tls'
import { siteUrl } from '../../lib/config.ts'
import type { Front } from '../../lib/settings.ts'

export type Door = Pick<Front, 'DOMAIN' | 'FRONT_IP' | 'FRONT_PORT' | 'FRONT_CA_FILE'>

/** The site's address, and what an agent needs to reach it: where to connect, which name to ask for, whom to believe. */
export function connectTo(door: Door) {
  const ca = door.FRONT_CA_FILE ? { ca: readFileSync(door.FRONT_CA_FILE) } : {}
  return {
    url: siteUrl(door as Front),
    agentOptions: {
      ...(door.FRONT_IP ? { host: door.FRONT_IP } : {}),
      servername: door.DOMAIN,
      // Read once: parsing the authority again for each connection would cost more than the handshake.
      secureContext: createSecureContext(ca),
    },
  }
}

export type Planned = {
  kind: 'get' | 'post'
  connection: 'kept' | 'new'
  /** How long the server is asked to take. */
  ms: number
}

const SLOW_MS = 2_000
const SHORT_MS = 50

/** Spreads evenly over 0 to 1, in the same order every time; steps without a common measure do not fall into line. */
const spread = (n: number, step: number) => (n * step) % 1

/** The nth request: half on kept connections, 30 % POST, one in twenty slow, and every mixture of these. */
export function planOf(n: number): Planned {
  return {
    kind: spread(n, Math.SQRT2) < 0.3 ? 'post' : 'get',
    connection: n % 2 === 0 ? 'kept' : 'new',
    ms: spread(n, Math.sqrt(3)) < 0.05 ? SLOW_MS : Math.floor(spread(n, Math.sqrt(5)) * (SHORT_MS + 1)),
  }
}

/** `reason` says why the request counts as lost. */
export type Verdict = { version: string; reason?: never } | { version?: never; reason: string }

/** Sends one request, once, and judges what comes of it. Always ends, at the latest after the timeout. */
export function ask(url: string, agent: Agent, { kind, ms }: Planned, id: string, timeoutMs: number): Promise<Verdict> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      lost(`no answer within ${timeoutMs / 1000} s`)
      outgoing.destroy()
    }, timeoutMs)
    const settle = (verdict: Verdict) => {
      clearTimeout(timer)
      resolve(verdict)
    }
    const lost = (reason: string) => settle({ reason })

    const options =
      kind === 'post' ? { agent, method: 'POST', headers: { 'content-type': 'application/json' } } : { agent }
    const outgoing = httpsRequest(`${url}/api/work?ms=${ms}`, options)
    outgoing.on('error', (error) => {
      lost(`${explain(error)}${outgoing.reusedSocket ? ', on a connection used before' : ''}`)
    })
    outgoing.on('response', (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.on('error', (error) => lost(`${explain(error)}, in the middle of the answer`))
      response.on('end', () =>
        settle(judge(response.statusCode, Buffer.concat(chunks).toString(), kind === 'post' ? id : undefined)),
      )
    })
    outgoing.end(kind === 'post' ? JSON.stringify({ id }) : undefined)
  })
}

/** Only a POST is given back the id that it sent; for a GET any id will do. */
function judge(status: number | undefined, body: string, id: string | undefined): Verdict {
  if (status !== 200) return { reason: `status ${status}: ${start(body)}` }
  const answer = parse(body)
  if (typeof answer?.version !== 'string' || typeof answer.id !== 'string')
    return { reason: `not an answer of the backend: ${start(body)}` }
  if (id !== undefined && answer.id !== id) return { reason: `the answer to another request: ${start(body)}` }
  return { version: answer.version }
}

export function parse(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

const start = (body: string) => (body ? body.slice(0, 120).replaceAll(/\s+/g, ' ') : 'nothing')

const explain = (error: NodeJS.ErrnoException) =>
  error.code && !error.message.includes(error.code) ? `${error.code} ${error.message}` : error.message
