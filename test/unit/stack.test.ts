import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parse } from 'yaml'
import { stackServices } from '../../lib/compose.ts'
import {
  type Active,
  NOTHING_DEPLOYED,
  other,
  parseActive,
  releaseName,
  renderActive,
} from '../../lib/release/color.ts'
import { parseDrift } from '../../lib/release/plan.ts'
import { serverProblems } from '../../lib/release/preflight.ts'
import { believed, parseSurvey } from '../../lib/release/survey.ts'
import { generateSecrets, redisAcl, SECRETS, withoutSecrets } from '../../lib/secrets.ts'
import { script } from '../../lib/shell.ts'
import { PROJECT_DIR } from '../rehearsal/names.ts'

const test = suite("the stack's files, and what is read back from the server")

type Service = {
  networks?: Record<string, { ipv4_address?: string } | null>
  extra_hosts?: string[]
  environment?: Record<string, string>
}
const services = Object.assign(
  {},
  ...['data', 'kgc', 'vendors', 'operations'].map(
    (name) => parse(readFileSync(join(PROJECT_DIR, `compose/${name}.yaml`), 'utf8'), { merge: true }).services,
  ),
) as Record<string, Service>

for (const service of ['nginx-proxy', 'kgc-backend-blue', 'kgc-migrate']) {
  test(`${service} knows its partners by the addresses that Compose gives them`, () => {
    const entries = services[service]?.extra_hosts ?? []
    assert.ok(entries.length > 0)
    for (const entry of entries) {
      const [name = '', address = ''] = entry.split(':')
      const given = Object.values(services[name]?.networks ?? {}).map((network) => network?.ipv4_address)
      assert.ok(given.includes(address), `${entry}: ${given}`)
    }
  })
}

test('no address is given twice', () => {
  const given = Object.entries(services).flatMap(([name, { networks }]) =>
    Object.values(networks ?? {}).flatMap((network) =>
      network?.ipv4_address ? [`${network.ipv4_address} ${name}`] : [],
    ),
  )
  const addresses = given.map((line) => line.split(' ')[0])
  assert.is(new Set(addresses).size, addresses.length, given.sort().join('\n'))
})

test('the inventory has every secret that Compose asks for', () => {
  const asked = new Set(
    ['base', 'common', 'data', 'kgc', 'vendors', 'operations', 'pitr-on'].flatMap((name) =>
      [
        ...readFileSync(join(PROJECT_DIR, `compose/${name}.yaml`), 'utf8').matchAll(
          /\$\{(\w*(?:PASSWORD|SECRET|_KEY|KEY_BASE|SALT)\w*)/g,
        ),
      ].map(([, variable]) => variable ?? ''),
    ),
  )
  const known = [...SECRETS.map(({ name }) => name), 'SMTP_PASSWORD', 'S3_ACCESS_KEY_ID']
  assert.equal(
    [...asked].filter((name) => !known.includes(name)),
    [],
  )
})

test('secrets are made once, long enough, and those in use are kept', () => {
  const first = generateSecrets()
  assert.equal(generateSecrets(first), first)
  for (const [name, value] of Object.entries(first)) assert.match(value, /^[0-9a-f]{32,}$/, name)
  assert.is.not(generateSecrets().JWT_SECRET, first.JWT_SECRET)
})

test("Redis' users file has no clear password, and nobody without one", () => {
  const secrets = generateSecrets()
  const file = redisAcl(secrets)
  assert.match(file, /^user default off$/m)
  for (const value of Object.values(secrets)) assert.not(file.includes(value))
})

test('the active file says what it was told, and nothing that a script did not write is believed', () => {
  for (const active of [
    { color: 'blue', version: 'v1' },
    { color: 'green', version: 'v12-hotfix' },
  ] as const) {
    assert.equal(parseActive(renderActive(active)), active)
    assert.throws(
      () => parseActive(renderActive(active).replace(active.color, other(active.color))),
      /not a file that deploy wrote/,
    )
  }
  assert.is(parseActive(''), undefined)
  assert.is(parseActive(renderActive(undefined)), undefined)
  assert.is(releaseName(undefined), NOTHING_DEPLOYED)
})

test('a survey of an empty server, and of one that serves', () => {
  assert.is(parseSurvey('@@unprepared\n').prepared, false)
  const found = parseSurvey(
    `@@commit\nabc\n@@dirty\n M nginx/nginx.conf\n@@free\n52428800\n@@active\n${renderActive({ color: 'green', version: 'v2' })}@@serving\ngreen v2 31\n` +
      '@@containers\nkgc-backend-green running\npostgres exited\n@@colors\nBLUE_VERSION=v1\nBLUE_BACKEND_IMAGE=r/backend@sha256:1\n@@records\n\n{"id":"1","version":"v2","images":{},"outcome":"good"}\n@@variables\n123 45\n@@listed\nabc:123-45 postgres redis\n',
  )
  assert.is(found.variables, '123-45')
  assert.equal(found.listed, { of: 'abc:123-45', services: ['postgres', 'redis'] })
  assert.equal(found.active, { color: 'green', version: 'v2' })
  assert.is(found.serving, 'green v2')
  assert.is(found.freeGb, 50)
  assert.equal(found.containers, { 'kgc-backend-green': 'running', postgres: 'exited' })
  assert.equal(found.colorImages, { blue: ['r/backend@sha256:1'], green: [] })
  assert.is(found.records.length, 1)
  assert.is(serverProblems(found, 10).length, 1)
  assert.is(serverProblems(found, 100).length, 2)
})

test('of a file and workers that name different releases, the one is believed that was tested', () => {
  const surveyOf = (named: Active | undefined, says: string, good: string[] = []) =>
    believed(
      parseSurvey(
        `@@active\n${renderActive(named)}@@serving\n${says}\n@@records\n${good.map((version) => JSON.stringify({ id: version, version, images: {}, outcome: 'good' })).join('\n')}\n`,
      ),
    )
  const [old, next]: Active[] = [
    { color: 'blue', version: 'v1' },
    { color: 'green', version: 'v2' },
  ]
  // A run died between the rename and the reload of its switch, and of its switch back.
  for (const { active, torn } of [surveyOf(next, 'blue v1 31', ['v1']), surveyOf(old, 'green v2 31', ['v1'])]) {
    assert.equal(active, old)
    assert.is(torn, true)
  }
  assert.equal(surveyOf(next, 'blue v1 31').active, old)
  assert.equal(surveyOf(next, 'blue v1 31', ['v1', 'v2']).active, old)
  assert.is(surveyOf(next, 'none none 31').active, undefined)
  assert.equal(surveyOf(undefined, 'blue v1 31').active, old)
  for (const says of ['green v2 31', '', '<html> 502']) {
    assert.equal(surveyOf(next, says).active, next, says)
    assert.is(surveyOf(next, says).torn, false, says)
  }
})

test("an application's log leaves the server without the server's secrets", () => {
  const folder = mkdtempSync(join(tmpdir(), 'kgc-secrets-'))
  writeFileSync(
    join(folder, '.env'),
    'DOMAIN=kgc-erp.hu\nKGC_DB_PASSWORD=0123456789abcdef\nSZAMLAZZ_HU_AGENT_KEY="a/b.c&d[e]*"\n',
  )
  const prints = withoutSecrets(
    script(
      `echo 'at kgc-erp.hu: postgres://kgc:0123456789abcdef@postgres'; echo 'key a/b.c&d[e]* (axb.c)' >&2; exit 7`,
    ),
  )
  const { status, stdout } = spawnSync('sh', ['-c', prints.shell.replaceAll('/opt/kgc', folder)], { encoding: 'utf8' })
  rmSync(folder, { recursive: true })
  assert.is(stdout, 'at kgc-erp.hu: postgres://kgc:***@postgres\nkey *** (axb.c)\n')
  assert.is(status, 7)
})

test('the services to start are all but jobs, checks and the two colors', () => {
  const json = JSON.stringify({
    services: {
      postgres: { restart: 'unless-stopped' },
      'chatwoot-prepare': { restart: 'no' },
      'kgc-backend-blue': { restart: 'unless-stopped' },
    },
  })
  assert.equal(stackServices(json), ['postgres'])
})

test('drift is what Compose would recreate, and what reads a younger file', () => {
  const drift = parseDrift(
    '@@wanted\npostgres aa\nredis bb\nkgc-backend-blue cc\ntwenty dd\n@@running\npostgres aa\nredis old\nkgc-backend-blue old\n@@younger\nprometheus\nprometheus\n',
  )
  assert.equal(drift, [
    { service: 'prometheus', why: 'files' },
    { service: 'redis', why: 'definition' },
  ])
})

test('no file of the project is made for one machine', () => {
  const tracked = execFileSync('git', ['ls-files'], { cwd: PROJECT_DIR, encoding: 'utf8' }).split('\n').filter(Boolean)
  assert.ok(tracked.includes('package-lock.json'))
  assert.not(readFileSync(join(PROJECT_DIR, 'package-lock.json'), 'utf8').includes('"resolved"'))
})

test.run()
