import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { sh } from '../../../lib/shell.ts'
import { envWith, rehearsal, runScript, said, servedVersion, serverRead } from '../harness.ts'
import { until } from '../server.ts'

const test = suite('smoke-test')

type Output = { ok: boolean; checks: { name: string; ok: boolean; expected: string; got: string; ms: number }[] }

test.before(() => rehearsal())

test('names and times each check, and exits 0 when all pass', async () => {
  const run = await runScript('smoke-test')
  assert.is(run.code, 0, said(run))
  for (const name of [
    'API health',
    'login',
    'dashboard page',
    'Twenty',
    'Chatwoot',
    'Horilla',
    'certificate',
    'database kgc',
    'database horilla',
  ]) {
    assert.match(run.stdout, new RegExp(`^ {2}✔ ${name} \\(\\d+ ms\\)$`, 'm'))
  }
  assert.match(run.stderr, /14 of 14 checks passed/)
})

test('gives the same as JSON', async () => {
  const run = await runScript('smoke-test', ['--json'])
  const output = JSON.parse(run.stdout) as Output
  assert.is(output.ok, true)
  assert.is(output.checks.length, 14)
  for (const check of output.checks) assert.ok(check.ok && check.expected && check.got && check.ms >= 0, check.name)
})

test('runs its checks at the same time: all of them in seconds, connection included', async () => {
  // Measured 1.0 s.
  assert.ok((await runScript('smoke-test')).seconds < 10)
})

test('needs no SSH for the part from outside, and says what it did not ask', async () => {
  const run = await runScript('smoke-test', [
    '--http-only',
    '--env',
    envWith({ SSH_HOST: '', SSH_KEY_FILE: '', SSH_HOST_KEY: '' }),
  ])
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /10 of 10 checks passed; the databases were not asked/)
})

test('says what was expected and what came when an application is down, and exits 1', async () => {
  await serverRead(sh`docker stop kgc-horilla-1`)
  try {
    const run = await runScript('smoke-test')
    assert.is(run.code, 1, said(run))
    assert.match(run.stdout, /✘ Horilla \(\d+ ms\): expected 200 with status = ok at hr\.\S+; came 503/)
    assert.match(run.stderr, /13 of 14 checks passed/)
  } finally {
    await serverRead(sh`docker start kgc-horilla-1`)
    await until(async () => (await runScript('smoke-test', ['--http-only'])).code === 0, 'Horilla')
  }
})

test('sees a database whose role cannot log in', async () => {
  const psql = (sql: string) => serverRead(sh`docker exec kgc-postgres-1 psql -U postgres -qc ${sql}`)
  await psql('alter role chatwoot_a nologin')
  try {
    const run = await runScript('smoke-test')
    assert.is(run.code, 1, said(run))
    assert.match(
      run.stdout,
      /✘ database chatwoot \(\d+ ms\): expected its own role can use chatwoot; came .*not permitted to log in/,
    )
  } finally {
    await psql('alter role chatwoot_a login')
  }
})

test('fails when another release answers than the one asked for', async () => {
  const other = (await servedVersion()) === 'v1' ? 'v2' : 'v1'
  const run = await runScript('smoke-test', ['--http-only', '--version', other])
  assert.is(run.code, 1, said(run))
  assert.match(run.stdout, new RegExp(`✘ API health .*version = ${other}`))
})

test('does not believe a certificate of another authority', async () => {
  const run = await runScript('smoke-test', ['--http-only', '--env', envWith({ FRONT_CA_FILE: '' })])
  assert.is(run.code, 1, said(run))
  assert.match(run.stdout, /✘ certificate .*; came .*certificate/)
})

test('reports a wrong account as a failed login, without its password', async () => {
  const run = await runScript('smoke-test', ['--http-only', '--env', envWith({ SMOKE_PASSWORD: 'sentinel-password' })])
  assert.is(run.code, 1, said(run))
  assert.match(run.stdout, /✘ login \(\d+ ms\): expected 200 with an accessToken; came 401/)
  assert.not(said(run).includes('sentinel-password'))
})

test.run()
