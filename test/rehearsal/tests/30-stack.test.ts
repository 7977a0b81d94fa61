import { parse } from 'dotenv'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { compose } from '../../../lib/compose.ts'
import { SECRETS } from '../../../lib/secrets.ts'
import { script, sh } from '../../../lib/shell.ts'
import { inContainer, onServer, rehearsal, serverRead } from '../harness.ts'
import { SINK } from '../names.ts'

const test = suite('the stack')

type Container = {
  Name: string
  Config: {
    Env: string[]
    Healthcheck?: { Test: string[] }
    Image: string
    StopTimeout?: number
    Labels: Record<string, string>
  }
  HostConfig: {
    PortBindings: Record<string, unknown>
    SecurityOpt: string[] | null
    CapDrop: string[] | null
    Memory: number
    NanoCpus: number
    PidsLimit: number | null
    LogConfig: { Type: string; Config: Record<string, string> }
    RestartPolicy: { Name: string }
  }
  NetworkSettings: { Networks: Record<string, { IPAddress: string; IPAMConfig: { IPv4Address?: string } | null }> }
}

let containers: Container[] = []
let env: Record<string, string> = {}
const serviceOf = (container: Container) => container.Config.Labels['com.docker.compose.service'] ?? ''
const isJob = (container: Container) => container.HostConfig.RestartPolicy.Name === 'no'

test.before(async () => {
  await rehearsal()
  containers = JSON.parse(
    await serverRead(script(`docker inspect $(docker ps -aq --filter label=com.docker.compose.project=kgc)`)),
  ) as Container[]
  env = parse(await serverRead(sh`cat /opt/kgc/.env`))
})

const offenders = (wrong: (container: Container) => boolean) => containers.filter(wrong).map(serviceOf).sort()

test('gives every service a health check that its container passes', async () => {
  assert.equal(
    offenders((c) => !isJob(c) && !c.Config.Healthcheck?.Test.length),
    [],
  )
})

test('publishes the ports of nginx and no other', () => {
  assert.equal(
    offenders((c) => Object.keys(c.HostConfig.PortBindings ?? {}).length > 0),
    ['nginx-proxy'],
  )
})

test('bounds every log, memory, CPU and number of processes', () => {
  assert.equal(
    offenders((c) => !c.HostConfig.LogConfig.Config['max-size'] || !c.HostConfig.LogConfig.Config['max-file']),
    [],
  )
  assert.equal(
    offenders((c) => !c.HostConfig.Memory),
    [],
  )
  assert.equal(
    offenders((c) => !c.HostConfig.NanoCpus),
    [],
  )
  assert.equal(
    offenders((c) => !c.HostConfig.PidsLimit),
    [],
  )
})

test('lets no process gain privileges, and drops every capability that is not added back by name', () => {
  assert.equal(
    offenders((c) => !c.HostConfig.SecurityOpt?.some((option) => option.startsWith('no-new-privileges'))),
    [],
  )
  assert.equal(
    offenders((c) => !c.HostConfig.CapDrop?.includes('ALL')),
    [],
  )
})

test('pins every image, none of them latest', () => {
  assert.equal(
    offenders((c) => !/(:v?\d|@sha256:)/.test(c.Config.Image) || c.Config.Image.endsWith(':latest')),
    [],
  )
})

test('restarts every service but the jobs', () => {
  assert.equal(offenders(isJob), ['chatwoot-prepare', 'horilla-migrate'])
  assert.equal(
    offenders((c) => !isJob(c) && c.HostConfig.RestartPolicy.Name !== 'unless-stopped'),
    [],
  )
})

test('has the addresses of the design', () => {
  const wanted: Record<string, RegExp> = {
    'kgc-backend-green': /^172\.20\.1\./,
    twenty: /^172\.20\.2\./,
    chatwoot: /^172\.20\.3\./,
    horilla: /^172\.20\.4\./,
    redis: /^172\.20\.5\./,
    postgres: /^172\.21\.1\./,
    'backup-service': /^172\.21\.2\./,
  }
  for (const [service, address] of Object.entries(wanted)) {
    const networks = containers.find((container) => serviceOf(container) === service)?.NetworkSettings.Networks ?? {}
    const fixed = Object.values(networks).map((network) => network.IPAMConfig?.IPv4Address ?? '')
    assert.ok(
      fixed.some((one) => address.test(one)),
      `${service}: ${fixed}`,
    )
  }
})

test('gives each secret to the services that the inventory names, and to no other', () => {
  for (const { name, users } of SECRETS) {
    const value = env[name] ?? ''
    assert.ok(value.length >= 16, `${name} is not in the server's .env`)
    const holders = offenders((c) => c.Config.Env.some((line) => line.includes(value)))
    assert.equal(
      holders.filter((service) => !users.includes(service)),
      [],
      name,
    )
  }
})

test('lets nothing on an internal network reach out, and lets out who must', async () => {
  const reach = (service: string) =>
    inContainer(service, sh`timeout 4 bash -c ${`exec 3<>/dev/tcp/${SINK.url.slice(7).replace(':', '/')}`}`)
  assert.is.not((await reach('postgres')).code, 0)
  assert.is.not((await reach('redis')).code, 0)
  assert.is((await reach('kgc-backend-green')).code === 0 || (await reach('kgc-backend-blue')).code === 0, true)
})

const asRole = (user: string, database: string, sql: string) =>
  onServer((host) =>
    host.probe(
      script(
        `docker exec -i kgc-postgres-1 sh -c 'read -r PGPASSWORD; export PGPASSWORD; psql -h postgres -U "$1" -d "$2" -v ON_ERROR_STOP=1 -Atqc "$3"' q ${user} ${database} "${sql}"`,
      ),
      { input: `${env[`${user.replace(/_a$/, '').toUpperCase()}_DB_PASSWORD`]}\n` },
    ),
  )

test('separates the roles: each uses its own database and no other', async () => {
  for (const role of ['kgc', 'twenty', 'chatwoot', 'horilla']) {
    for (const database of ['kgc', 'twenty', 'chatwoot', 'horilla']) {
      const { code, stderr } = await asRole(`${role}_a`, database, 'select 1')
      if (role === database) assert.is(code, 0, stderr)
      else assert.match(stderr, /permission denied for database/)
    }
  }
})

test('makes whatever an application creates belong to its owner role, whichever login made it', async () => {
  await asRole('kgc_a', 'kgc', 'create table if not exists owner_test (id int)')
  const owner = await asRole('kgc_a', 'kgc', "select tableowner from pg_tables where tablename = 'owner_test'")
  await asRole('kgc_a', 'kgc', 'drop table owner_test')
  assert.is(owner.stdout.trim(), 'kgc')
})

test('refuses a wrong password, also from inside the database network', async () => {
  const wrong = await onServer((host) =>
    host.probe(
      script(`docker exec -i kgc-postgres-1 sh -c 'PGPASSWORD=wrong psql -h postgres -U kgc_a -d kgc -c "select 1"'`),
    ),
  )
  assert.match(wrong.stderr, /password authentication failed/)
})

test('has the extensions that Chatwoot and Twenty need', async () => {
  const extensions = (await asRole('chatwoot_a', 'chatwoot', 'select extname from pg_extension')).stdout.split('\n')
  for (const name of ['vector', 'pg_stat_statements', 'pg_trgm', 'pgcrypto']) assert.ok(extensions.includes(name), name)
  assert.is((await asRole('twenty_a', 'twenty', 'create extension if not exists \\"uuid-ossp\\"')).code, 0)
})

test('sorts text as Hungarians do', async () => {
  const { stdout } = await asRole(
    'kgc_a',
    'kgc',
    "select string_agg(n, ',' order by n) from unnest(array['zab','ábra','cukor','csúcs','béka']) n",
  )
  assert.is(stdout.trim(), 'ábra,béka,cukor,csúcs,zab')
})

const redis = (service: string, user: string, command: string) =>
  onServer((host) =>
    host.probe(
      script(
        `docker exec -i kgc-${service}-1 sh -c 'read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli --no-auth-warning --user ${user} ${command}'`,
      ),
      {
        input: `${env[`${user.toUpperCase()}_REDIS_PASSWORD`]}\n`,
      },
    ),
  )

test('keeps a cache that may forget and a queue that may not', async () => {
  assert.match((await redis('redis', 'exporter', 'config get maxmemory-policy')).stdout, /allkeys-lru/)
  assert.match((await redis('redis-queue', 'exporter', 'config get maxmemory-policy')).stdout, /noeviction/)
  assert.match((await redis('redis-queue', 'exporter', 'config get appendonly')).stdout, /yes/)
})

test('gives nobody Redis without a password, and no application its administration', async () => {
  const anonymous = await inContainer('redis', sh`env -u REDISCLI_AUTH redis-cli get x`)
  assert.match(anonymous.stdout, /NOAUTH/)
  for (const command of ['flushall', 'config set maxmemory 1', 'acl list', 'shutdown']) {
    assert.match((await redis('redis', 'kgc', command)).stdout, /NOPERM/, command)
  }
  assert.match((await redis('redis', 'kgc', 'set stack-test 1 ex 5')).stdout, /OK/)
})

test('is valid for production: its own domain, registry and limits', async () => {
  const production = script(`
set -e
cd /opt/kgc
grep -v -e _CPUS -e _MEMORY -e '^DOMAIN=' -e '^REGISTRY=' -e SHARED_BUFFERS -e CACHE_SIZE .env > /tmp/production.env
printf 'DOMAIN=kgc-erp.hu\\nREGISTRY=ghcr.io/kgc\\n' >> /tmp/production.env
chmod 600 /tmp/production.env
trap 'rm -f /tmp/production.env' EXIT
${compose(sh`config`).shell.replace('--env-file .env', '--env-file /tmp/production.env')}
${compose(sh`run --rm --no-deps -T -e DOMAIN=kgc-erp.hu nginx-check`).shell} >&2
`)
  const config = await onServer((host) => host.read(production, { timeout: 60 }))
  assert.match(config, /image: ghcr\.io\/kgc\/twenty:v/)
  assert.match(config, /cpus: 4\n/)
})

test('lets Prometheus reach everything it scrapes', async () => {
  const reply = await inContainer('prometheus', sh`wget -q -O - http://127.0.0.1:9090/api/v1/targets?state=active`)
  const { data } = JSON.parse(reply.stdout) as {
    data: { activeTargets: { labels: { job: string }; health: string; lastError: string }[] }
  }
  const down = data.activeTargets.filter(({ health, labels }) => health !== 'up' && labels.job !== 'blackbox')
  assert.ok(data.activeTargets.length >= 8)
  assert.equal(
    down.map(({ labels, lastError }) => `${labels.job}: ${lastError}`),
    [],
  )
})

test.run()
