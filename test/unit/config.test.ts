import { chmodSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { loadConfig, validate } from '../../lib/config.ts'
import { Stop } from '../../lib/errors.ts'

const test = suite('the configuration')

const folder = mkdtempSync(join(tmpdir(), 'kgc-config-'))
writeFileSync(join(folder, 'key'), 'a key')
const GOOD = {
  DOMAIN: 'kgc-erp.hu',
  SMOKE_EMAIL: 'smoke@kgc-erp.hu',
  SMOKE_PASSWORD: 'sentinel-secret-1',
  SSH_HOST: '203.0.113.10',
  SSH_KEY_FILE: join(folder, 'key'),
  SSH_HOST_KEY: `SHA256:${'A'.repeat(43)}`,
  REGISTRY: 'ghcr.io/kgc',
  REGISTRY_USER: 'kgc',
  REGISTRY_PASSWORD: 'sentinel-secret-2',
}
const ALL = ['front', 'server', 'registry', 'release', 'notify'] as const

function envFile(values: Record<string, string>, mode = 0o600): string {
  const file = join(folder, `${Math.random()}.env`)
  writeFileSync(
    file,
    Object.entries(values)
      .map(([name, value]) => `${name}=${value}\n`)
      .join(''),
  )
  chmodSync(file, mode)
  return file
}

test('is read with its defaults', () => {
  const config = loadConfig(envFile(GOOD), [...ALL])
  assert.is(config.server.SSH_PORT, 22)
  assert.is(config.server.SSH_USER, 'deploy')
  assert.is(config.front.FRONT_PORT, 443)
  assert.is(config.release.KEEP_RELEASES, 5)
  assert.is(config.notify.SLACK_WEBHOOK_URL, undefined)
})

test('names every missing variable at once, each with an example', () => {
  const { problems } = validate({}, [...ALL])
  for (const name of Object.keys(GOOD)) {
    assert.ok(
      problems.some((problem) => new RegExp(`^${name} is not set\\. Example: \\S`).test(problem)),
      `${name}: ${problems}`,
    )
  }
})

const WRONG: Record<string, string> = {
  DOMAIN: 'https://kgc-erp.hu/',
  FRONT_IP: '999.1.1.1',
  FRONT_PORT: '70000',
  SMOKE_EMAIL: 'nobody',
  SSH_HOST: 'kgc@erp!',
  SSH_PORT: 'ssh',
  SSH_USER: 'Root!',
  SSH_KEY_FILE: '/no/such/key',
  SSH_HOST_KEY: 'ssh-ed25519 AAAA',
  REGISTRY: 'https://ghcr.io/kgc',
  HEALTH_TIMEOUT: '1.5',
  KEEP_RELEASES: '1',
  MIN_FREE_DISK_GB: '-3',
  SLACK_WEBHOOK_URL: 'slack',
}
for (const [name, value] of Object.entries(WRONG)) {
  test(`says what is wrong with ${name}=${value} without repeating the value`, () => {
    const { problems } = validate({ ...GOOD, [name]: value }, [...ALL])
    assert.is(problems.length, 1, problems.join('\n'))
    assert.match(problems[0] ?? '', new RegExp(`^${name} (is|names) `))
    assert.not(problems[0]?.replace(/Example:.*/, '').includes(value))
  })
}

test('asks only for what the script needs', () => {
  assert.equal(
    validate({ DOMAIN: 'kgc-erp.hu', SMOKE_EMAIL: GOOD.SMOKE_EMAIL, SMOKE_PASSWORD: 'x' }, ['front']).problems,
    [],
  )
})

test('never shows a secret in its error', () => {
  const file = envFile({ ...GOOD, SSH_PORT: 'wrong' })
  try {
    loadConfig(file, [...ALL])
    assert.unreachable()
  } catch (error) {
    assert.instance(error, Stop)
    assert.is((error as Stop).code, 2)
    assert.not(String(error).includes('sentinel-secret'))
  }
})

test('knows its secrets, so that the output can be cleaned of them', () => {
  const { secrets } = loadConfig(envFile(GOOD), [...ALL])
  assert.ok(secrets.includes('sentinel-secret-1') && secrets.includes('sentinel-secret-2'))
})

test('takes the named file before the environment: a variable left in the shell cannot redirect a run', () => {
  process.env.SSH_HOST = 'another.example'
  try {
    assert.is(loadConfig(envFile(GOOD), ['server']).server.SSH_HOST, '203.0.113.10')
  } finally {
    delete process.env.SSH_HOST
  }
})

test('refuses a file that others can read, and one that is not there', () => {
  assert.throws(() => loadConfig(envFile(GOOD, 0o644), ['server']), /others on this machine can read it/)
  assert.throws(() => loadConfig(join(folder, 'none.env'), ['server']), /There is no file/)
})

test('takes an empty value as not set', () => {
  assert.is(loadConfig(envFile({ ...GOOD, SLACK_WEBHOOK_URL: '' }), ['notify']).notify.SLACK_WEBHOOK_URL, undefined)
})

test.run()
