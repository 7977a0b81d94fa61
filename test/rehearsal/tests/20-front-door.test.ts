import { readFileSync } from 'node:fs'
import { connect as connectTcp } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import WebSocket from 'ws'
import { NGINX_CONF, PROXY } from '../../../lib/layout.ts'
import { script, sh } from '../../../lib/shell.ts'
import { docker } from '../engine.ts'
import { ask, front, inContainer, rehearsal, runScript, said, servedVersion, serverRead } from '../harness.ts'
import { IMAGES, NETWORKS, RUNNER_ADDRESS, SERVER } from '../names.ts'
import { until } from '../server.ts'

const test = suite('the front door')

const site = () => {
  const { DOMAIN, FRONT_IP = '', FRONT_CA_FILE = '' } = front()
  return { DOMAIN, ip: FRONT_IP, ca: FRONT_CA_FILE }
}

/** Plain HTTP on port 80, answered by text. '' when the connection was closed without an answer. */
const onPort80 = (host: string, path = '/') =>
  new Promise<string>((resolve, reject) => {
    const socket = connectTcp({ host: site().ip, port: 80 }, () =>
      socket.write(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`),
    )
    let answer = ''
    socket.on('data', (chunk) => {
      answer += chunk
    })
    socket.setTimeout(5000, () => socket.destroy(new Error('no answer')))
    socket.on('close', () => resolve(answer))
    socket.on('error', reject)
  })

const handshake = (servername: string) =>
  new Promise<string>((resolve) => {
    const socket = connectTls(
      { host: site().ip, port: 443, servername, rejectUnauthorized: false, timeout: 5000 },
      () => {
        socket.destroy()
        resolve('connected')
      },
    )
    socket.on('error', (error) => resolve(String((error as NodeJS.ErrnoException).code)))
  })

const websocket = (host: string, path: string) =>
  new WebSocket(`wss://${site().ip}${path}`, {
    headers: { host },
    ca: readFileSync(site().ca),
    ...{ servername: host },
  })

/** A client whose address is in the range that plays Cloudflare. */
const fromEdge = (args: string[]) =>
  docker(
    sh`run --rm --network ${NETWORKS.edge.name} ${`${IMAGES}/hub/nginx:1.30-alpine`} curl -s -k --max-time 10 ${args}`,
  )
const edgeCurl = (host: string, path: string, headers: string[] = []) =>
  fromEdge([
    '--resolve',
    `${host}:443:${SERVER.edgeAddress}`,
    ...headers.flatMap((header) => ['-H', header]),
    `https://${host}${path}`,
  ])

test.before(() => rehearsal())

test('gives the frontend at the apex', async () => {
  const page = await ask(undefined)
  assert.is(page.status, 200)
  assert.match(page.body, /<meta name="release" content="v\d/)
})

test('gives the backend at /api, with the prefix removed', async () => {
  const health = await ask(undefined, { path: '/api/health' })
  assert.is(health.status, 200)
  assert.equal(JSON.parse(health.body), { status: 'ok', version: await servedVersion(), database: 'ok', redis: 'ok' })
})

test('answers work with version and id, and commits what was posted', async () => {
  const id = `front-door-${Date.now()}`
  const posted = await ask(undefined, { method: 'POST', path: '/api/work?ms=5', json: { id } })
  assert.equal(JSON.parse(posted.body), { version: await servedVersion(), id })
  const row = await inContainer(
    'postgres',
    sh`psql -U postgres -d kgc -Atc ${`select count(*) from work where id = '${id}'`}`,
  )
  assert.is(row.stdout.trim(), '1')
})

for (const [sub, path, field, value] of [
  ['crm', '/healthz', 'status', 'ok'],
  ['support', '/health', 'status', 'woot'],
  ['hr', '/health/', 'status', 'ok'],
  ['grafana', '/api/health', 'database', 'ok'],
] as const) {
  test(`gives the right application at ${sub}.`, async () => {
    const answer = await ask(sub, { path })
    assert.is(answer.status, 200)
    assert.is(JSON.parse(answer.body)[field], value)
  })
}

for (const [host, path] of [
  ['', '/ws'],
  ['support.', '/cable'],
] as const) {
  test(`upgrades websockets at ${host || 'the apex '}${path} and carries messages both ways`, async () => {
    const socket = websocket(`${host}${site().DOMAIN}`, path)
    const heard: string[] = []
    await new Promise<void>((resolve, reject) => {
      socket.on('open', () => socket.send('hello from the test'))
      socket.on('message', (data) => {
        heard.push(String(data))
        if (String(data).includes('hello from the test') || host) resolve()
      })
      socket.on('error', reject)
      setTimeout(() => reject(new Error(`heard only ${heard}`)), 5000).unref()
    })
    socket.close()
    if (!host)
      assert.ok(
        heard.some((text) => text.includes(`"version":"v`) && text.includes('hello from the test')),
        heard.join(),
      )
  })
}

test('redirects plain HTTP to HTTPS on the canonical host, and nothing else', async () => {
  assert.match(
    await onPort80(site().DOMAIN, '/invoices?id=7'),
    new RegExp(`^HTTP/1.1 301 [\\s\\S]*Location: https://${site().DOMAIN}/invoices\\?id=7\r\n`),
  )
})

test('answers ACME challenges on port 80 from their directory only', async () => {
  assert.match(await onPort80(site().DOMAIN, '/.well-known/acme-challenge/none'), /^HTTP\/1.1 404 /)
})

test('gives an unknown host nothing: no answer on 80, no certificate on 443', async () => {
  assert.is(await onPort80('evil.example'), '')
  assert.is(await onPort80(site().ip), '')
  assert.is.not(await handshake('evil.example'), 'connected')
  assert.is(await handshake(site().DOMAIN), 'connected')
})

test('refuses a known name in the handshake with another host in the request', async () => {
  const error = await ask(undefined, { headers: { host: `crm.${site().DOMAIN}.evil.example` } }).catch(
    (reason) => reason,
  )
  assert.instance(error, Error)
})

test('never shows the metrics', async () => {
  for (const path of [
    '/api/metrics',
    '/api/metrics/',
    '/api/METRICS',
    '/api//metrics',
    '/api/./metrics',
    '/api/%6detrics',
  ]) {
    const { status, body } = await ask(undefined, { path })
    assert.is(status, 404, path)
    assert.not(body.includes('http_requests_total'), path)
  }
})

test('speaks TLS 1.2 and later, says HSTS, and hides its version', async () => {
  const { headers } = await ask(undefined)
  assert.match(String(headers['strict-transport-security']), /max-age=\d{8}/)
  assert.is(headers.server, 'nginx')
})

test('believes a visitor address from Cloudflare only', async () => {
  const claim = ['CF-Connecting-IP: 192.0.2.77', 'X-Forwarded-For: 192.0.2.66']
  const throughCloudflare = JSON.parse(await edgeCurl(site().DOMAIN, '/api/whoami', claim))
  assert.is(throughCloudflare.address, '192.0.2.77')
  const direct = JSON.parse(
    (
      await ask(undefined, {
        path: '/api/whoami',
        headers: { 'cf-connecting-ip': '192.0.2.77', 'x-forwarded-for': '192.0.2.66' },
      })
    ).body,
  )
  assert.is(direct.address, RUNNER_ADDRESS)
})

/** What somebody at 192.0.2.77 gets, through Cloudflare. */
const asStranger = (host: string, path: string) =>
  fromEdge([
    ...['-o', '/dev/null', '-w', '%{http_code}', '-H', 'CF-Connecting-IP: 192.0.2.77'],
    ...['--resolve', `${host}:443:${SERVER.edgeAddress}`, `https://${host}${path}`],
  ])

test('opens Grafana and the super-admin pages to administrators only', async () => {
  assert.is((await ask('grafana', { path: '/api/health' })).status, 200)
  assert.is(await asStranger(`grafana.${site().DOMAIN}`, '/'), '403')
  assert.is(await asStranger(`support.${site().DOMAIN}`, '/super_admin'), '403')
})

test('who is no longer among ADMIN_ADDRESSES is kept out as soon as bootstrap-server.ts was run', async () => {
  const list = '/opt/kgc/state/nginx/admins.conf'
  await serverRead(
    script(`echo 'allow 192.0.2.77;' >> ${list}; docker exec ${PROXY} nginx -q -c ${NGINX_CONF} -s reload`),
  )
  const isOut = async () => (await asStranger(`grafana.${site().DOMAIN}`, '/')) === '403'
  await until(async () => !(await isOut()), 'nginx to read the list')
  const run = await runScript('bootstrap-server', ['--yes'])
  assert.is(run.code, 0, said(run))
  await until(isOut, 'nginx to read the list')
})

test('closes all sites with the maintenance page while the flag is there, and opens them again', async () => {
  await serverRead(sh`touch /opt/kgc/state/nginx/maintenance`)
  try {
    for (const sub of [undefined, 'crm', 'support', 'hr']) {
      const page = await ask(sub)
      assert.is(page.status, 503, sub)
      assert.is(page.headers['retry-after'], '60')
      assert.match(page.body, /<html/)
    }
    const api = await ask(undefined, { path: '/api/health' })
    assert.is(api.status, 503)
    assert.is(JSON.parse(api.body).statusCode, 503)
  } finally {
    await serverRead(sh`rm /opt/kgc/state/nginx/maintenance`)
  }
  assert.is((await ask(undefined)).status, 200)
})

test('shows the maintenance page when an application is down, not an error of nginx', async () => {
  await serverRead(sh`docker stop kgc-horilla-1`)
  try {
    const page = await ask('hr')
    assert.is(page.status, 503)
    assert.match(page.body, /<html/)
    assert.is((await ask(undefined)).status, 200)
  } finally {
    await serverRead(sh`docker start kgc-horilla-1`)
  }
})

test('starts, and serves the rest, while applications are down', async () => {
  await serverRead(sh`docker stop kgc-twenty-1 kgc-grafana-1`)
  try {
    await serverRead(sh`docker restart kgc-nginx-proxy-1`)
    await until(async () => (await ask(undefined).catch(() => undefined))?.status === 200, 'nginx to serve again', 10)
    assert.is((await ask('crm')).status, 503)
  } finally {
    await serverRead(sh`docker start kgc-twenty-1 kgc-grafana-1`)
  }
})

test.run()
