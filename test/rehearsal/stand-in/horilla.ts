// Stands in for Horilla as its fork runs it: manage.py migrate, and gunicorn with Django's answers under DEBUG=False.
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { Pool } from 'pg'
import { close, fail, html, listen, message, onStop, pathOf, required, send } from './common.ts'

const env = required('SECRET_KEY', 'DATABASE_URL', 'DEBUG', 'ALLOWED_HOSTS', 'CSRF_TRUSTED_ORIGINS', 'DB_INIT_PASSWORD')
if (env.DEBUG !== 'False') fail('DEBUG: must be False')
if (!/^postgres(ql)?:/.test(env.DATABASE_URL)) fail('DATABASE_URL: not PostgreSQL')
const hosts = env.ALLOWED_HOSTS.split(',').map((host) => host.trim())
const pool = new Pool({
  connectionString: env.DATABASE_URL,
  max: 8,
  connectionTimeoutMillis: 3_000,
  query_timeout: 5_000,
})
pool.on('error', (error) => console.error(`database: ${error.message}`))

async function migrate() {
  try {
    await pool.query(`CREATE TABLE IF NOT EXISTS django_migrations (id bigserial PRIMARY KEY, app text NOT NULL, name text NOT NULL UNIQUE, applied timestamptz NOT NULL DEFAULT now());
      INSERT INTO django_migrations (app, name) VALUES ('base', '0001_initial') ON CONFLICT DO NOTHING`)
    console.log('migrate: done')
    process.exit(0)
  } catch (error) {
    fail(`migrate: ${message(error)}`)
  }
}

function serve(bind: string) {
  writeFileSync('/app/media/.started', `${new Date().toISOString()}\n`)
  const server = createServer(async (request, response) => {
    const { pathname } = pathOf(request)
    const host = (request.headers.host ?? '').replace(/:\d+$/, '')
    if (!hosts.includes(host) && !hosts.includes('*')) return send(response, 400, 'Bad Request (400)')
    if (request.headers['x-forwarded-proto'] !== 'https')
      return send(response, 301, '', { location: `https://${host}${request.url}` })
    if (pathname === '/health/') return send(response, 200, { status: 'ok' })
    if (pathname === '/') return send(response, 302, '', { location: '/login/' })
    if (pathname !== '/login' && pathname !== '/login/') return send(response, 404, 'Not Found')
    try {
      await pool.query('SELECT 1 FROM django_migrations')
      send(response, 200, '<!doctype html><title>Horilla</title><form method="post"></form>', html)
    } catch (error) {
      console.error(`${pathname}: ${message(error)}`)
      send(response, 500, 'Server Error (500)')
    }
  })
  const [address, port] = bind.split(':')
  listen(server, Number(port), address)
  onStop(async () => {
    await close(server)
    await pool.end()
  })
}

const [command, ...words] = process.argv.slice(2)
if (command === 'migrate') void migrate()
else if (command === 'gunicorn') serve(words[words.indexOf('--bind') + 1] ?? '127.0.0.1:8000')
else fail(`the stand-in for Horilla has no "${command}"`)
