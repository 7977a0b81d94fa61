// Stands in for Twenty: server, worker, and the upgrade that its entrypoint runs. Schema `core`, a queue, local storage.
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { Client, Pool } from 'pg'
import { close, fail, html, listen, message, onStop, pathOf, pause, required, send } from './common.ts'
import { heartbeat, openRedis } from './redis.ts'

const env = required('SERVER_URL', 'PG_DATABASE_URL', 'REDIS_URL', 'ENCRYPTION_KEY', 'APP_SECRET', 'STORAGE_TYPE')
const { NODE_PORT = '3000', REDIS_QUEUE_URL } = process.env
if (new URL(env.SERVER_URL).origin !== env.SERVER_URL) fail('SERVER_URL: must be an origin, without a path')
const database = new URL(env.PG_DATABASE_URL)
// The real entrypoint takes the URL apart itself: without a port it asks for a host named "postgres/db".
if (!database.port) fail('PG_DATABASE_URL: the port is missing')

const queue = 'bull:cron-queue:wait'
const storage = (file: string) =>
  writeFileSync(`/app/packages/twenty-server/.local-storage/${file}`, `${new Date().toISOString()}\n`)
const openPool = () => {
  const pool = new Pool({
    connectionString: env.PG_DATABASE_URL,
    max: 10,
    connectionTimeoutMillis: 3_000,
    query_timeout: 5_000,
  })
  pool.on('error', (error) => console.error(`database: ${error.message}`))
  return pool
}

async function upgrade() {
  const maintenance = new URL(database)
  maintenance.pathname = '/postgres'
  for (const [url, statements] of [
    [maintenance.href, 'SELECT datname FROM pg_database'],
    [
      env.PG_DATABASE_URL,
      `CREATE EXTENSION IF NOT EXISTS "uuid-ossp"; CREATE EXTENSION IF NOT EXISTS unaccent WITH SCHEMA public;
       CREATE SCHEMA IF NOT EXISTS core;
       CREATE TABLE IF NOT EXISTS core."keyValuePair" (key text PRIMARY KEY, value text NOT NULL);
       CREATE TABLE IF NOT EXISTS core.job (id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), data text NOT NULL, done timestamptz NOT NULL DEFAULT now());
       INSERT INTO core."keyValuePair" VALUES ('upgraded', now()) ON CONFLICT (key) DO UPDATE SET value = now()`,
    ],
  ] as const) {
    const client = new Client({ connectionString: url, connectionTimeoutMillis: 5_000 })
    try {
      await client.connect()
      await client.query(statements)
    } catch (error) {
      fail(`upgrade: ${new URL(url).pathname.slice(1)}: ${message(error)}`)
    }
    await client.end()
  }
  console.log('upgrade: done')
}

function serve() {
  storage('server')
  const pool = openPool()
  const redis = openRedis(REDIS_QUEUE_URL ?? env.REDIS_URL)
  heartbeat(redis, 'twenty:server:heartbeat')
  const push = () => redis.lPush(queue, new Date().toISOString()).catch(() => undefined)
  redis.on('ready', push)
  setInterval(push, 15_000).unref()

  const server = createServer(async (request, response) => {
    const { pathname } = pathOf(request)
    if (pathname === '/healthz') return send(response, 200, { status: 'ok', info: {}, error: {}, details: {} })
    try {
      // Answers only with a migrated schema: /healthz alone has been seen green over an empty one.
      if (pathname === '/client-config') {
        await pool.query('SELECT value FROM core."keyValuePair"')
        return send(response, 200, {
          appVersion: '2.45.0',
          isMultiWorkspaceEnabled: false,
          frontDomain: new URL(env.SERVER_URL).host,
        })
      }
      if (pathname === '/graphql' || pathname === '/metadata') return send(response, 200, { data: null })
      send(
        response,
        200,
        `<!doctype html><title>Twenty</title><script>window._env_={REACT_APP_SERVER_BASE_URL:"${env.SERVER_URL}"}</script>`,
        html,
      )
    } catch (error) {
      console.error(`${pathname}: ${message(error)}`)
      send(response, 500, { error: message(error) })
    }
  })
  listen(server, Number(NODE_PORT))
  onStop(async () => {
    await close(server)
    await pool.end()
    redis.destroy()
  })
}

async function work() {
  storage('worker')
  const pool = openPool()
  const redis = openRedis(REDIS_QUEUE_URL ?? env.REDIS_URL)
  heartbeat(redis, 'twenty:worker:heartbeat')
  let stopping = false
  const loop = (async () => {
    while (!stopping) {
      try {
        const job = redis.isReady ? await redis.rPop(queue) : null
        if (job) await pool.query('INSERT INTO core.job (data) VALUES ($1)', [job])
        else await pause(1_000)
      } catch (error) {
        console.error(`worker: ${message(error)}`)
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

const command = process.argv.slice(2).join(' ')
if (command === '') serve()
else if (command === 'worker:prod') void work()
else if (command === 'upgrade' || command === 'command:prod upgrade') void upgrade()
else fail(`the stand-in for Twenty has no "${command}"`)
