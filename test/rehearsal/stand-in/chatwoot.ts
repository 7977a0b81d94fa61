// Stands in for Chatwoot: rails s, sidekiq, db:chatwoot_prepare and the wait of its entrypoint.
import { mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { connect } from 'node:net'
import { Pool } from 'pg'
import { WebSocketServer } from 'ws'
import { close, closeSockets, fail, html, listen, message, onStop, pathOf, pause, required, send } from './common.ts'
import { heartbeat, openRedis } from './redis.ts'

const [command, ...words] = process.argv.slice(2)

/** As `pg_isready`: whether something listens, without logging in. */
function waitForPostgres() {
  const { POSTGRES_HOST, POSTGRES_PORT = '5432' } = process.env
  if (!POSTGRES_HOST) fail('not set: POSTGRES_HOST')
  const socket = connect({ host: POSTGRES_HOST, port: Number(POSTGRES_PORT), timeout: 3_000 })
  socket
    .on('connect', () => process.exit(0))
    .on('timeout', () => process.exit(2))
    .on('error', () => process.exit(2))
}

function open() {
  const env = required(
    'SECRET_KEY_BASE',
    'ACTIVE_RECORD_ENCRYPTION_PRIMARY_KEY',
    'ACTIVE_RECORD_ENCRYPTION_DETERMINISTIC_KEY',
    'ACTIVE_RECORD_ENCRYPTION_KEY_DERIVATION_SALT',
    'FRONTEND_URL',
    'RAILS_ENV',
    'POSTGRES_HOST',
    'POSTGRES_DATABASE',
    'POSTGRES_USERNAME',
    'POSTGRES_PASSWORD',
    'REDIS_URL',
  )
  const pool = new Pool({
    host: env.POSTGRES_HOST,
    port: Number(process.env.POSTGRES_PORT ?? 5432),
    database: env.POSTGRES_DATABASE,
    user: env.POSTGRES_USERNAME,
    password: env.POSTGRES_PASSWORD,
    max: Number(process.env.RAILS_MAX_THREADS ?? 5),
    connectionTimeoutMillis: 3_000,
    statement_timeout: Number.parseInt(process.env.POSTGRES_STATEMENT_TIMEOUT ?? '14s', 10) * 1_000,
  })
  pool.on('error', (error) => console.error(`database: ${error.message}`))
  return { pool, redis: openRedis(env.REDIS_URL, process.env.REDIS_PASSWORD) }
}

const storage = (file: string) => writeFileSync(`/app/storage/${file}`, `${new Date().toISOString()}\n`)

async function prepare() {
  const { pool, redis } = open()
  try {
    // The application's role may not create vector and pg_stat_statements: the superuser must have been here before.
    for (const extension of ['pg_stat_statements', 'pg_trgm', 'pgcrypto', 'vector']) {
      await pool.query(`CREATE EXTENSION IF NOT EXISTS ${extension}`)
    }
    await pool.query(`CREATE TABLE IF NOT EXISTS ar_internal_metadata (key text PRIMARY KEY, value text);
      CREATE TABLE IF NOT EXISTS article_embeddings (id bigserial PRIMARY KEY, embedding vector(3));
      CREATE TABLE IF NOT EXISTS jobs_done (id bigserial PRIMARY KEY, data text, at timestamptz NOT NULL DEFAULT now());
      INSERT INTO ar_internal_metadata VALUES ('environment', 'production') ON CONFLICT DO NOTHING`)
    for (let tries = 0; !redis.isReady && tries < 50; tries += 1) await pause(100)
    await redis.set('CHATWOOT_INSTALLATION_ONBOARDING', 'true')
    console.log('db:chatwoot_prepare: done')
    process.exit(0)
  } catch (error) {
    fail(`db:chatwoot_prepare: ${message(error)}`)
  }
}

function web() {
  const { pool, redis } = open()
  storage('web')
  mkdirSync('/app/tmp/pids', { recursive: true })
  heartbeat(redis, 'chatwoot:web:heartbeat')
  const push = () => redis.lPush('queue:default', new Date().toISOString()).catch(() => undefined)
  redis.on('ready', push)
  setInterval(push, 15_000).unref()

  const server = createServer(async (request, response) => {
    const { pathname } = pathOf(request)
    if (process.env.FORCE_SSL === 'true' && request.headers['x-forwarded-proto'] !== 'https') {
      return send(response, 301, '', { location: `https://${request.headers.host}${request.url}` })
    }
    if (pathname === '/health') return send(response, 200, { status: 'woot' })
    if (pathname === '/api') {
      const state = (work: Promise<unknown>) =>
        work.then(
          () => 'ok',
          () => 'failing',
        )
      const [queue_services, data_services] = await Promise.all([
        state(redis.ping()),
        state(pool.query('SELECT 1 FROM ar_internal_metadata')),
      ])
      return send(response, 200, {
        version: '4.18.0',
        timestamp: new Date().toISOString(),
        queue_services,
        data_services,
      })
    }
    send(response, 200, '<!doctype html><title>Chatwoot</title>', html)
  })
  const cable = new WebSocketServer({ server, path: '/cable' })
  cable.on('connection', (socket) => {
    socket.send('{"type":"welcome"}')
    const ping = setInterval(
      () => socket.send(JSON.stringify({ type: 'ping', message: Math.floor(Date.now() / 1000) })),
      3_000,
    )
    socket.on('close', () => clearInterval(ping)).on('error', () => socket.terminate())
  })

  const option = (flag: string, otherwise: string) => words[words.indexOf(flag) + 1 || words.length] ?? otherwise
  listen(server, Number(option('-p', '3000')), option('-b', '127.0.0.1'))
  onStop(async () => {
    closeSockets(cable.clients)
    await close(server)
    await pool.end()
    redis.destroy()
  })
}

function sidekiq() {
  const { pool, redis } = open()
  storage('sidekiq')
  process.title = 'sidekiq 7.3.9 app [0 of 10 busy]'
  heartbeat(redis, 'chatwoot:sidekiq:heartbeat')
  let stopping = false
  const loop = (async () => {
    while (!stopping) {
      try {
        const job = redis.isReady ? await redis.rPop('queue:default') : null
        if (job) {
          await pool.query('INSERT INTO jobs_done (data) VALUES ($1)', [job])
          await redis.incr('stat:processed')
        } else await pause(1_000)
      } catch (error) {
        console.error(`sidekiq: ${message(error)}`)
        await pause(1_000)
      }
    }
  })()
  onStop(async () => {
    stopping = true
    await loop
    await pool.end()
    redis.destroy()
  })
}

if (command === 'pg_isready') waitForPostgres()
else if (command === 'rails' && words[0] === 's') web()
else if (command === 'rails' && words[0] === 'db:chatwoot_prepare') void prepare()
else if (command === 'sidekiq') sidekiq()
else fail(`the stand-in for Chatwoot has no "${[command, ...words].join(' ')}"`)
