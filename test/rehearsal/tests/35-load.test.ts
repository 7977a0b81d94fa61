import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer } from 'node:https'
import { type AddressInfo, createServer as createPlainServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type WebSocket, WebSocketServer } from 'ws'
import { type LoadReport, startLoad } from '../load.ts'
import { planOf } from '../load-request.ts'

const test = suite('the load generator')

const folder = mkdtempSync(join(tmpdir(), 'kgc-load-'))
test.after(() => rmSync(folder, { recursive: true }))

const inFolder = (name: string) => join(folder, name)
for (const name of ['site', 'stranger']) {
  const made = ['-keyout', inFolder(`${name}.key`), '-out', inFolder(`${name}.pem`)]
  const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1']
  const names = ['-subj', '/CN=erp.test', '-addext', 'subjectAltName=DNS:erp.test']
  execFileSync('openssl', ['req', ...kind, ...names, ...made], { stdio: 'ignore' })
}

type Request = { id: string; n: number; answer: ServerResponse; right: () => void; reset: () => void }
type Behavior = {
  request?: (request: Request) => void
  socket?: (socket: WebSocket, n: number) => void
  accept?: (n: number) => boolean
  authority?: string
  rate?: number
  websockets?: number
  forMs?: number
  timeoutMs?: number
}

/** Loads a server that answers as asked, on a port of its own, and gives the report and what the server saw. */
async function load(behavior: Behavior) {
  const seen = { ids: [] as string[], connections: 0, requests: 0, sockets: 0, upgrades: 0, names: new Set<unknown>() }
  const server = createServer({ key: readFileSync(inFolder('site.key')), cert: readFileSync(inFolder('site.pem')) })
  const raw = new Map<number | undefined, Socket>()
  server.on('connection', (socket: Socket) => raw.set(socket.remotePort, socket))
  server.on('secureConnection', (socket) => {
    seen.connections += 1
    seen.names.add(socket.servername)
  })
  server.on('request', async (incoming: IncomingMessage, answer: ServerResponse) => {
    const n = seen.requests++
    let body = ''
    for await (const chunk of incoming) body += chunk
    const id: string = incoming.method === 'POST' ? JSON.parse(body).id : `any-${n}`
    if (incoming.method === 'POST') seen.ids.push(id)
    const reset = () => raw.get(incoming.socket.remotePort)?.resetAndDestroy()
    const right = () => answer.end(JSON.stringify({ version: 'v1', id }))
    ;(behavior.request ?? right)({ id, n, answer, right, reset })
  })
  const sockets = new WebSocketServer({
    server,
    path: '/ws',
    verifyClient: (_, done) => done(behavior.accept?.(seen.upgrades++) ?? true, 502),
  })
  sockets.on('connection', (socket) => {
    const echo = () => {
      socket.send(JSON.stringify({ version: 'v1' }))
      socket.on('message', (data) => socket.send(JSON.stringify({ version: 'v1', echo: String(data) })))
    }
    ;(behavior.socket ?? echo)(socket, seen.sockets++)
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const { rate = 100, websockets = 0, timeoutMs = 1_500, forMs = 400, authority = 'site' } = behavior
  const door = {
    DOMAIN: 'erp.test',
    FRONT_IP: '127.0.0.1',
    FRONT_PORT: (server.address() as AddressInfo).port,
    FRONT_CA_FILE: inFolder(`${authority}.pem`),
  }
  const running = startLoad(door, { rate, websockets, timeoutMs })
  await sleep(forMs)
  const report = await running.stop()
  for (const socket of sockets.clients) socket.terminate()
  server.closeAllConnections()
  await new Promise((done) => server.close(done))
  return { report, seen }
}

const reasons = (report: LoadReport) => [...new Set(report.lost.map(({ reason }) => reason))].join('; ')
const addsUp = ({ sent, ok, lost }: LoadReport) => assert.is(ok + lost.length, sent)

test('mixes as it says, and mixes the mixtures', () => {
  const plans = Array.from({ length: 4_000 }, (_, n) => planOf(n))
  const share = (of: (plan: ReturnType<typeof planOf>) => boolean) => plans.filter(of).length / plans.length
  const near = (value: number, wanted: number) => assert.ok(Math.abs(value - wanted) < 0.01, `${value}, not ${wanted}`)
  near(
    share(({ connection }) => connection === 'kept'),
    0.5,
  )
  near(
    share(({ kind }) => kind === 'post'),
    0.3,
  )
  near(
    share(({ ms }) => ms === 2_000),
    0.05,
  )
  near(
    share(({ kind, connection }) => kind === 'post' && connection === 'kept'),
    0.15,
  )
  near(
    share(({ kind, connection, ms }) => kind === 'post' && connection === 'new' && ms === 2_000),
    0.0075,
  )
})

test('loses nothing when all is right', async () => {
  const { report, seen } = await load({ websockets: 3, forMs: 1_200 })
  assert.equal(report.lost, [])
  addsUp(report)
  assert.is(report.sent, seen.requests)
  assert.ok(report.rate > 95 && report.rate < 105, `${report.rate} requests per second`)
  assert.ok(
    seen.connections > report.sent / 2 && seen.connections < report.sent * 0.8,
    `${seen.connections} connections`,
  )
  assert.equal([...seen.names], ['erp.test'])
  assert.equal([...report.acknowledged].sort(), [...seen.ids].sort())
  assert.is(new Set(seen.ids).size, seen.ids.length)
  assert.ok(seen.ids.every((id) => id.startsWith(report.idPrefix)))
  assert.equal(report.unacknowledged, [])
  assert.equal(Object.keys(report.versions), ['v1'])
  for (const socket of report.websockets) {
    assert.is(socket.opens, 1)
    assert.ok(socket.messages >= 1)
    assert.is(socket.echoesLost + socket.withoutMs + socket.closes.length + socket.refused.length, 0)
  }
})

test('does not wait for answers before it sends more', async () => {
  const { report } = await load({ request: ({ right }) => setTimeout(right, 250), forMs: 500 })
  assert.ok(report.rate > 90, `${report.rate} requests per second`)
  assert.equal(report.lost, [])
  assert.ok(report.latency.p50 > 150, `${report.latency.p50} ms`)
})

test('tells when each version began and ended to answer', async () => {
  const { report } = await load({
    request: ({ answer, id, n }) => answer.end(JSON.stringify({ version: n < 20 ? 'v1' : 'v2', id })),
  })
  const { v1, v2 } = report.versions
  assert.is((v1?.requests ?? 0) + (v2?.requests ?? 0), report.sent)
  assert.is(v1?.requests, 20)
  assert.ok((v1?.last.msSinceStart ?? 0) > (v1?.first.msSinceStart ?? 0))
  assert.ok((v2?.last.msSinceStart ?? 0) > (v1?.last.msSinceStart ?? 0))
})

const WRONG: [string, (request: Request) => void, RegExp][] = [
  ['resets the connection', ({ reset }) => reset(), /ECONNRESET/],
  ['closes without an answer', ({ answer }) => answer.socket?.end(), /socket hang up/],
  ['answers 502', ({ answer }) => answer.writeHead(502).end('<h1>Bad\nGateway</h1>'), /^status 502: <h1>Bad Gateway/],
  [
    'answers 503 in JSON',
    ({ answer, id }) => answer.writeHead(503).end(JSON.stringify({ version: 'v1', id })),
    /^status 503/,
  ],
  ['answers with a page', ({ answer }) => answer.end('<html>'), /^not an answer of the backend: <html>/],
  ['answers with nothing', ({ answer }) => answer.end(), /^not an answer of the backend: nothing/],
  ['never answers', () => {}, /^no answer within 1\.5 s/],
  [
    'stops in the middle of its answer',
    ({ answer }) => {
      answer.writeHead(200, { 'content-length': 100 }).write('{"version"')
      setTimeout(() => answer.socket?.destroy(), 20)
    },
    /in the middle of the answer/,
  ],
  ['does not finish its answer', ({ answer }) => answer.writeHead(200).write('{'), /^no answer within 1\.5 s/],
]
for (const [what, fault, expected] of WRONG) {
  test(`counts each request as lost whose server ${what}, and no other`, async () => {
    let faults = 0
    const { report, seen } = await load({
      request: (request) => {
        if (request.n % 5 !== 3) return request.right()
        faults += 1
        fault(request)
      },
    })
    assert.ok(faults > 3)
    assert.is(report.lost.length, faults, reasons(report))
    addsUp(report)
    assert.is(seen.requests, report.sent, 'nothing is sent twice')
    for (const { reason } of report.lost) assert.match(reason, expected, reasons(report))
    assert.is(report.unacknowledged.length, report.lost.filter(({ kind }) => kind === 'post').length)
  })
}

test('counts a POST as lost that gets the answer to another', async () => {
  const { report, seen } = await load({
    request: ({ answer }) => answer.end(JSON.stringify({ version: 'v1', id: 'another' })),
  })
  assert.is(report.lost.length, seen.ids.length)
  assert.match(reasons(report), /^the answer to another request/)
  assert.equal(report.acknowledged, [])
  assert.equal([...report.unacknowledged].sort(), [...seen.ids].sort())
})

test('says when, what and on which connection', async () => {
  const before = Date.now()
  const { report } = await load({ request: ({ reset }) => reset() })
  assert.equal([...new Set(report.lost.map(({ kind, connection }) => `${kind} ${connection}`))].sort(), [
    'get kept',
    'get new',
    'post kept',
    'post new',
  ])
  for (const { at, msSinceStart } of report.lost) {
    assert.ok(Math.abs(Date.parse(at) - before - msSinceStart) < 1000)
  }
})

test('notes that a kept connection was used before when it is reset', async () => {
  const { report } = await load({
    forMs: 800,
    request: ({ right, reset, n }) => (n < 20 ? right() : reset()),
  })
  const used = report.lost.filter(({ reason }) => reason.endsWith('on a connection used before'))
  assert.ok(used.length > 0, reasons(report))
  assert.ok(used.every(({ connection }) => connection === 'kept'))
})

test('loses everything to a server with the certificate of another authority', async () => {
  const { report, seen } = await load({ authority: 'stranger', websockets: 1 })
  assert.is(seen.requests, 0)
  assert.is(report.ok, 0)
  assert.match(reasons(report), /self-signed certificate/)
  assert.is(report.websockets[0]?.opens, 0)
  assert.match(report.websockets[0]?.refused[0]?.reason ?? '', /self-signed certificate/)
})

test('loses everything when nobody listens', async () => {
  const running = startLoad(
    { DOMAIN: 'erp.test', FRONT_IP: '127.0.0.1', FRONT_PORT: 1, FRONT_CA_FILE: undefined },
    { websockets: 1 },
  )
  await sleep(300)
  const report = await running.stop()
  assert.ok(report.sent > 50)
  assert.is(report.lost.length, report.sent)
  assert.match(reasons(report), /^(connect )?ECONNREFUSED/)
  assert.ok((report.websockets[0]?.withoutMs ?? 0) > 150)
})

test('ends when it is told to, also when a request was due at that moment', async () => {
  let connections = 0
  const server = createPlainServer((socket) => {
    connections += 1
    socket.destroy()
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const door = { DOMAIN: 'erp.test', FRONT_IP: '127.0.0.1', FRONT_CA_FILE: undefined }
  const { port } = server.address() as AddressInfo
  const running = startLoad({ ...door, FRONT_PORT: port }, { rate: 100, websockets: 0 })
  const ended = new Promise((resolve) => setTimeout(() => resolve(running.stop()), 50))
  // Both timers are due when this is over, and run one right after the other.
  const busyUntil = performance.now() + 150
  while (performance.now() < busyUntil);
  await ended
  const atEnd = connections
  await sleep(200)
  server.close()
  assert.ok(atEnd > 0)
  assert.is(connections, atEnd)
})

for (const [how, end, code, clean] of [
  ['says that it is going away', (socket: WebSocket) => socket.close(1001), '1001', true],
  ['says that it restarts', (socket: WebSocket) => socket.close(1012), '1012', true],
  ['reports an error', (socket: WebSocket) => socket.close(1011), '1011', false],
  ['cuts the connection', (socket: WebSocket) => socket.terminate(), '1006', false],
] as const) {
  test(`notes a websocket's ${clean ? 'clean' : 'unclean'} close when the server ${how}, and comes back`, async () => {
    const { report } = await load({
      websockets: 1,
      forMs: 1_200,
      socket: (socket, n) => {
        socket.on('message', (data) => socket.send(JSON.stringify({ version: 'v1', echo: String(data) })))
        if (n === 0) setTimeout(() => end(socket), 200)
      },
    })
    const [socket] = report.websockets
    assert.is(socket?.opens, 2)
    assert.equal(socket?.closesByCode, { [code]: 1 })
    assert.is(socket?.closes[0]?.clean, clean)
    const without = socket?.closes[0]?.withoutMs ?? 0
    assert.ok(without >= 50 && without < 2000, `${without} ms without a connection`)
    assert.is(socket?.withoutMs, without)
    assert.is(socket?.echoesLost, 0)
  })
}

test('counts the messages that a websocket did not echo', async () => {
  const { report } = await load({
    websockets: 1,
    forMs: 500,
    socket: (socket) => setTimeout(() => socket.close(1001), 100),
  })
  const [socket] = report.websockets
  assert.ok((socket?.messages ?? 0) >= 2)
  assert.is(socket?.echoesLost, socket?.messages)
})

test('notes a websocket that is refused, and tries again', async () => {
  const { report } = await load({ websockets: 1, forMs: 800, accept: (n) => n >= 2 })
  const [socket] = report.websockets
  assert.is(socket?.opens, 1)
  assert.is(socket?.refused.length, 2)
  assert.match(socket?.refused[0]?.reason ?? '', /502/)
  assert.ok((socket?.withoutMs ?? 0) >= 100)
  assert.equal(socket?.closes, [])
})

test.run()
