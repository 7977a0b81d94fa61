// Stands in front of pebble, which is never down and limits nobody, and for the part of Cloudflare's API that DNS-01 needs.
// On port 8080: PUT /mode (normal, down, limited), GET /root (the authority that signs), GET /orders (how many were asked for).
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createTlsServer, request as httpsRequest } from 'node:https'
import { close, listen, message, onStop, pathOf, readBody, required, send } from './common.ts'

const { ZONE, DNS_TOKEN, DNS_READ_TOKEN } = required('ZONE', 'DNS_TOKEN', 'DNS_READ_TOKEN')
const PEBBLE = { host: '127.0.0.1', port: 14000, rejectUnauthorized: false }
const MODES = ['normal', 'down', 'limited'] as const
let mode: (typeof MODES)[number] = 'normal'
let orders = 0

type Pebble = { status: number; headers: Record<string, string>; body: string }

function askPebble(path: string, request: Partial<IncomingMessage>, body = '', port = PEBBLE.port): Promise<Pebble> {
  return new Promise((resolve, reject) => {
    const { method = 'GET', headers = {} } = request
    const asked = httpsRequest({ ...PEBBLE, port, path, method, headers }, async (answer) => {
      resolve({
        status: answer.statusCode ?? 502,
        headers: answer.headers as Record<string, string>,
        body: await readBody(answer),
      })
    })
    asked.on('error', reject).end(body)
  })
}

async function authority(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname } = pathOf(request)
  if (pathname === '/order-plz') {
    orders += 1
    if (mode === 'limited') {
      // Let's Encrypt's words, and RFC 8555, 6.6. A nonce comes with every answer.
      const { headers } = await askPebble('/nonce-plz', { method: 'HEAD' })
      return send(
        response,
        429,
        {
          type: 'urn:ietf:params:acme:error:rateLimited',
          detail:
            'too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, retry after 2030-01-01 00:00:00 UTC: see https://letsencrypt.org/docs/rate-limits/#new-certificates-per-exact-set-of-identifiers',
          status: 429,
        },
        {
          ...{ 'content-type': 'application/problem+json', 'retry-after': '3600' },
          'replay-nonce': headers['replay-nonce'] ?? '',
        },
      )
    }
  }
  const { status, headers, body } = await askPebble(request.url ?? '/', request, await readBody(request))
  response.writeHead(status, headers).end(body)
}

type TxtRecord = { id: string; type: 'TXT'; name: string; content: string; ttl: number }
const zone = { id: randomUUID().replaceAll('-', ''), name: ZONE, status: 'active' }
let records: TxtRecord[] = []

const tellDns = (path: string, value: object) =>
  fetch(`http://127.0.0.1:8055${path}`, { method: 'POST', body: JSON.stringify(value) })

/** Cloudflare's answers to a token: malformed, unknown, without the right to write. */
async function cloudflare(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname, searchParams } = pathOf(request)
  const answer = (result: unknown) => send(response, 200, { success: true, errors: [], messages: [], result })
  const refuse = (status: number, code: number, text: string) =>
    send(response, status, { success: false, errors: [{ code, message: text }], messages: [], result: null })
  const [, token] = /^Bearer ([\w-]{40})$/.exec(request.headers.authorization ?? '') ?? []
  if (token === undefined) return refuse(400, 6003, 'Invalid request headers')
  if (token !== DNS_TOKEN && token !== DNS_READ_TOKEN) return refuse(403, 9109, 'Invalid access token')

  const list = `/client/v4/zones/${zone.id}/dns_records`
  if (request.method === 'GET' && pathname === '/client/v4/zones')
    return answer(searchParams.get('name') === zone.name ? [zone] : [])
  if (request.method === 'GET' && pathname === list) {
    const same = (field: 'type' | 'name' | 'content', of: TxtRecord) =>
      !searchParams.has(field) || searchParams.get(field) === of[field]
    return answer(records.filter((record) => same('type', record) && same('name', record) && same('content', record)))
  }
  if (!pathname.startsWith(list)) return refuse(404, 7003, `Could not route to ${pathname}`)
  if (token === DNS_READ_TOKEN) return refuse(403, 10000, 'Authentication error')
  if (request.method === 'POST') {
    const { type, name, content, ttl } = JSON.parse(await readBody(request)) as Omit<TxtRecord, 'id'>
    if (type !== 'TXT' || !name.endsWith(`.${ZONE}`) || !content || ttl < 60)
      return refuse(400, 9000, 'DNS record is invalid')
    if (records.some((record) => record.name === name && record.content === content))
      return refuse(400, 81058, 'An identical record already exists.')
    const record = { id: randomUUID().replaceAll('-', ''), type, name, content, ttl }
    records.push(record)
    await tellDns('/set-txt', { host: `${name}.`, value: content })
    return answer(record)
  }
  const record = records.find(({ id }) => pathname === `${list}/${id}`)
  if (request.method !== 'DELETE' || !record) return refuse(404, 81044, 'Record does not exist.')
  records = records.filter(({ id }) => id !== record.id)
  await tellDns('/clear-txt', { host: `${record.name}.` })
  return answer({ id: record.id })
}

const front = createTlsServer(
  { cert: readFileSync('/config/tls.crt'), key: readFileSync('/config/tls.key') },
  (request, response) => {
    const handle = request.headers.host === 'api.cloudflare.com' ? cloudflare : authority
    handle(request, response).catch((error) => send(response, 502, message(error)))
  },
)
listen(front, 443)

const control = createServer(async (request, response) => {
  try {
    const { pathname } = pathOf(request)
    if (pathname === '/root') return send(response, 200, (await askPebble('/roots/0', {}, '', 15000)).body)
    if (pathname === '/orders') return send(response, 200, { orders })
    if (pathname === '/records') return send(response, 200, records)
    const wanted = MODES.find((name) => name === pathOf(request).searchParams.get('is'))
    if (request.method !== 'PUT' || pathname !== '/mode' || !wanted) return send(response, 404, 'not found')
    if (wanted === 'down' && front.listening) {
      front.close()
      front.closeAllConnections()
    }
    if (wanted !== 'down' && !front.listening) listen(front, 443)
    mode = wanted
    send(response, 200, { mode })
  } catch (error) {
    send(response, 500, { error: message(error) })
  }
})
listen(control, 8080)
onStop(() => close(control))
