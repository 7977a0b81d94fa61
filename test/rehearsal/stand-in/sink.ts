// Stands in for what is told things: Slack's incoming webhook (as strict as Slack), an SMS gateway and other webhooks.
// GET /messages lists what came, DELETE /messages forgets it. Also something to connect to when egress is tested.
import { createServer } from 'node:http'
import { close, listen, message, onStop, pathOf, readBody, send } from './common.ts'

interface Received {
  at: string
  kind: 'slack' | 'sms' | 'webhook'
  path: string
  body: unknown
}
let received: Received[] = []

const object = (text: string): Record<string, unknown> | undefined => {
  try {
    const value: unknown = JSON.parse(text)
    return value !== null && typeof value === 'object' && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined
  } catch {
    return undefined
  }
}

const server = createServer(async (request, response) => {
  const { pathname } = pathOf(request)
  const keep = (kind: Received['kind'], body: unknown) => {
    received = [...received.slice(-999), { at: new Date().toISOString(), kind, path: pathname, body }]
    console.log(`${kind}: ${JSON.stringify(body)}`)
  }
  try {
    if (pathname === '/health') return send(response, 200, { status: 'ok' })
    if (pathname === '/messages' && request.method === 'GET') return send(response, 200, received)
    if (pathname === '/messages' && request.method === 'DELETE') {
      received = []
      return send(response, 200, { status: 'ok' })
    }
    if (request.method !== 'POST') return send(response, 404, 'not found')

    const body = object(await readBody(request))
    const json = (request.headers['content-type'] ?? '').startsWith('application/json')
    if (pathname.startsWith('/services/')) {
      if (!/^\/services\/T\w*\/B\w*\/\w+$/.test(pathname)) return send(response, 404, 'no_service')
      const told = typeof body?.text === 'string' || Array.isArray(body?.blocks) || Array.isArray(body?.attachments)
      if (!json || !told) return send(response, 400, 'invalid_payload')
      keep('slack', body)
      return send(response, 200, 'ok')
    }
    if (pathname === '/sms') {
      if (!json || typeof body?.to !== 'string' || typeof body.text !== 'string')
        return send(response, 400, { error: 'to and text are needed' })
      keep('sms', body)
      return send(response, 200, { status: 'queued' })
    }
    if (pathname.startsWith('/webhook')) {
      keep('webhook', body)
      return send(response, 200, { status: 'ok' })
    }
    send(response, 404, 'not found')
  } catch (error) {
    send(response, 500, { error: message(error) })
  }
})
listen(server, 8080)
onStop(() => close(server))
