// Stands in for the KGC backend: the paths that nginx exposes under /api, with a real table, real sessions, real metrics.
import { createHmac, randomUUID, timingSafeEqual } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { Pool } from 'pg'
import { WebSocketServer } from 'ws'
import {
  close,
  closeSockets,
  fail,
  listen,
  message,
  onStop,
  pathOf,
  pause,
  readBody,
  required,
  send,
  timeout,
} from './common.ts'
import { Metrics } from './metrics.ts'
import { heartbeat, openRedis } from './redis.ts'

const env = required(
  'DATABASE_URL',
  'REDIS_URL',
  'JWT_SECRET',
  'TWENTY_API_URL',
  'CHATWOOT_API_URL',
  'HORILLA_API_URL',
  'SZAMLAZZ_HU_AGENT_KEY',
)
const { VERSION: version = 'v0', BEHAVIOR: behavior = 'good', PORT = '3000', WARMUP_MS = '0' } = process.env
/** The one account that there is. Without it nobody can log in. */
const { SMOKE_EMAIL, SMOKE_PASSWORD } = process.env

const pool = new Pool({
  connectionString: env.DATABASE_URL,
  max: 10,
  connectionTimeoutMillis: 3_000,
  query_timeout: 5_000,
})
pool.on('error', (error) => console.error(`database: ${error.message}`))

/** Expands only; two releases may start at the same time, so one waits for the other. */
const migrate = () =>
  pool.query(`SELECT pg_advisory_xact_lock(3000);
    CREATE TABLE IF NOT EXISTS work (id text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())`)

const metrics = new Metrics()
const warmAt = Date.now() + Number(WARMUP_MS)
let migrated = false

const sign = (text: string) => createHmac('sha256', env.JWT_SECRET).update(text).digest('base64url')

function newToken(email: string): string {
  const payload = JSON.stringify({ sub: email, exp: Math.floor(Date.now() / 1000) + 3600 })
  const text = [JSON.stringify({ alg: 'HS256', typ: 'JWT' }), payload]
    .map((part) => Buffer.from(part).toString('base64url'))
    .join('.')
  return `${text}.${sign(text)}`
}

function userOf(request: IncomingMessage): string | undefined {
  const [head, payload, signature] = (request.headers.authorization ?? '').replace(/^Bearer /, '').split('.')
  if (!head || !payload || !signature) return undefined
  const expected = Buffer.from(sign(`${head}.${payload}`))
  const given = Buffer.from(signature)
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return undefined
  const { sub, exp } = JSON.parse(Buffer.from(payload, 'base64url').toString()) as { sub: string; exp: number }
  return exp * 1000 > Date.now() ? sub : undefined
}

function start() {
  writeFileSync(`/app/uploads/.started-${version}`, `${new Date().toISOString()}\n`)
  const redis = openRedis(env.REDIS_URL)
  heartbeat(redis, `kgc:backend:${version}:heartbeat`)
  void (async () => {
    while (!migrated) {
      try {
        await migrate()
        migrated = true
      } catch (error) {
        console.error(`database: ${message(error)}`)
        await pause(1_000)
      }
    }
  })()

  const routes: Record<string, (request: IncomingMessage, response: ServerResponse, url: URL) => unknown> = {
    'GET /health': async (_, response) => {
      const state = (work: Promise<unknown>, what: string) => timeout(work, 2_000, what).then(() => 'ok', message)
      const [database, cache] = await Promise.all([
        state(pool.query('SELECT 1'), 'database'),
        state(redis.ping(), 'redis'),
      ])
      const ready = behavior !== 'unhealthy' && migrated && Date.now() >= warmAt && database === 'ok' && cache === 'ok'
      send(response, ready ? 200 : 503, { status: ready ? 'ok' : 'unavailable', version, database, redis: cache })
    },
    'GET /metrics': (_, response) =>
      send(response, 200, metrics.text(), { 'content-type': 'text/plain; version=0.0.4' }),
    'POST /auth/login': async (request, response) => {
      if (behavior === 'broken') return send(response, 500, { error: 'login is broken in this release' })
      const { email, password } = JSON.parse(await readBody(request)) as Record<string, unknown>
      if (!SMOKE_PASSWORD || email !== SMOKE_EMAIL || password !== SMOKE_PASSWORD)
        return send(response, 401, { error: 'wrong e-mail or password' })
      await redis.set(`kgc:session:${randomUUID()}`, String(email), { expiration: { type: 'EX', value: 3_600 } })
      send(response, 200, { accessToken: newToken(String(email)) })
    },
    'GET /dashboard': async (request, response) => {
      const user = userOf(request)
      if (!user) return send(response, 401, { error: 'log in first' })
      const { rows } = await pool.query('SELECT count(*)::int AS work FROM work')
      send(response, 200, { user, version, ...rows[0] })
    },
    'GET /work': async (_, response, url) => {
      await pause(Number(url.searchParams.get('ms') ?? 0))
      send(response, 200, { version, id: randomUUID() })
    },
    // The row is committed before the wait: an answer that is then lost was not lost work. An id that comes twice
    // (a proxy repeating what must not be repeated) is told apart from the first.
    'POST /work': async (request, response, url) => {
      const body = await readBody(request)
      const id = url.searchParams.get('id') ?? (JSON.parse(body || '{}') as { id?: string }).id
      if (!id) return send(response, 400, { error: 'id is missing' })
      const { rowCount } = await pool.query('INSERT INTO work (id) VALUES ($1) ON CONFLICT DO NOTHING', [id])
      metrics.counters.sync_jobs_total += 1
      if (rowCount === 0) return send(response, 409, { error: 'this id is done already', version, id })
      await pause(Number(url.searchParams.get('ms') ?? 0))
      send(response, 200, { version, id })
    },
    'GET /whoami': (request, response) => {
      const forwarded = String(request.headers['x-forwarded-for'] ?? '')
        .split(',')[0]
        ?.trim()
      const address = forwarded || request.headers['x-real-ip'] || request.socket.remoteAddress
      send(response, 200, { address, version, headers: request.headers })
    },
  }

  let stopping = false
  const server = createServer(async (request, response) => {
    const began = performance.now()
    const url = pathOf(request)
    const key = `${request.method} ${url.pathname}`
    const handle = routes[key]
    if (stopping) response.setHeader('connection', 'close')
    response.on('close', () => {
      const route = handle ? url.pathname : 'unknown'
      metrics.request(request.method ?? '', route, response.statusCode, (performance.now() - began) / 1000)
    })
    try {
      if (handle) await handle(request, response, url)
      else send(response, 404, { error: `no ${key}` })
    } catch (error) {
      console.error(`${key}: ${message(error)}`)
      if (!response.headersSent) send(response, error instanceof SyntaxError ? 400 : 500, { error: message(error) })
    }
  })

  const sockets = new WebSocketServer({ server })
  sockets.shouldHandle = (request) => /^\/ws(\/|$)/.test(pathOf(request).pathname)
  sockets.on('connection', (socket) => {
    metrics.gauges.websocket_connections_active = sockets.clients.size
    socket.on('close', () => (metrics.gauges.websocket_connections_active = sockets.clients.size))
    socket.on('error', (error) => console.error(`websocket: ${error.message}`))
    socket.on('message', (data) => socket.send(JSON.stringify({ version, echo: String(data) })))
    socket.send(JSON.stringify({ version }))
  })

  listen(server, Number(PORT))
  onStop(async () => {
    stopping = true
    closeSockets(sockets.clients)
    await close(server)
    await pool.end()
    redis.destroy()
  })
}

if (process.argv[2] !== 'migrate') start()
else
  migrate().then(
    () => process.exit(0),
    (error) => fail(`database: ${message(error)}`),
  )
