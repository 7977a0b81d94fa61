// Stands in for Grafana, which is not in Debian: its variables, its health answer, and its provisioning, read for real.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createServer, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
// @ts-expect-error The image has Node 24; the types are those of the oldest Node that the scripts support.
import { DatabaseSync } from 'node:sqlite'
import { close, fail, html, listen, message, onStop, pathOf, required, send } from './common.ts'

for (const name of ['GF_SECURITY_ADMIN_PASSWORD', 'GF_SECURITY_SECRET_KEY']) {
  const file = process.env[`${name}__FILE`]
  if (file && process.env[name]) fail(`both ${name} and ${name}__FILE are set`)
  if (file) process.env[name] = readFileSync(file, 'utf8').trim()
}
const env = required('GF_SECURITY_ADMIN_PASSWORD', 'GF_SECURITY_SECRET_KEY')
const {
  GF_SERVER_HTTP_PORT = '3000',
  GF_SECURITY_ADMIN_USER = 'admin',
  GF_PATHS_PROVISIONING = '/etc/grafana/provisioning',
} = process.env

const yamlIn = (folder: string) => {
  const path = join(GF_PATHS_PROVISIONING, folder)
  return existsSync(path)
    ? readdirSync(path)
        .filter((file) => /\.ya?ml$/.test(file))
        .map((file) => readFileSync(join(path, file), 'utf8'))
    : []
}
const values = (texts: string[], key: string) =>
  texts.flatMap((text) =>
    [...text.matchAll(new RegExp(`^[ -]*${key}:\\s*["']?([^"'\\s#]+)`, 'gm'))].map((match) => match[1] ?? ''),
  )

/** The dashboards of every provider's folder. One that is not JSON ends the program: nobody would look for its absence. */
function dashboards(): { uid: string; title: string }[] {
  const folders = values(yamlIn('dashboards'), 'path')
  for (const path of folders) if (!existsSync(path)) console.error(`${path}: no such folder`)
  return folders
    .filter((path) => existsSync(path))
    .flatMap((path) =>
      readdirSync(path, { recursive: true, encoding: 'utf8' })
        .filter((file) => file.endsWith('.json'))
        .map((file) => {
          try {
            const { uid, title } = JSON.parse(readFileSync(join(path, file), 'utf8')) as {
              uid?: string
              title?: string
            }
            if (!title) throw new Error('no title')
            return { uid: uid ?? file, title }
          } catch (error) {
            return fail(`${join(path, file)}: ${message(error)}`)
          }
        }),
    )
}

const found = { datasources: values(yamlIn('datasources'), 'url'), dashboards: dashboards() }
console.log(`provisioned: ${found.datasources.length} data sources, ${found.dashboards.length} dashboards`)
const database = new DatabaseSync('/var/lib/grafana/grafana.db')
database.exec('CREATE TABLE IF NOT EXISTS start (at TEXT)')
database.prepare('INSERT INTO start VALUES (?)').run(new Date().toISOString())

const isAdmin = (request: IncomingMessage) =>
  request.headers.authorization ===
  `Basic ${Buffer.from(`${GF_SECURITY_ADMIN_USER}:${env.GF_SECURITY_ADMIN_PASSWORD}`).toString('base64')}`

const server = createServer((request, response) => {
  const { pathname } = pathOf(request)
  if (pathname === '/api/health') return send(response, 200, { database: 'ok', version: '13.2.3' })
  if (pathname === '/login') return send(response, 200, '<!doctype html><title>Grafana</title>', html)
  if (!pathname.startsWith('/api/')) return send(response, 302, '', { location: '/login' })
  if (!isAdmin(request)) return send(response, 401, { message: 'Unauthorized' })
  if (pathname === '/api/search') return send(response, 200, found.dashboards)
  if (pathname === '/api/datasources')
    return send(
      response,
      200,
      found.datasources.map((url) => ({ url })),
    )
  send(response, 404, { message: 'Not found' })
})
listen(server, Number(GF_SERVER_HTTP_PORT))
onStop(() => close(server))
