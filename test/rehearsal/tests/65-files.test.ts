import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { PROXY } from '../../../lib/layout.ts'
import { other, renderActive } from '../../../lib/release/color.ts'
import { chain, script, sh } from '../../../lib/shell.ts'
import { local } from '../engine.ts'
import {
  ask,
  envWith,
  front,
  type Run,
  rehearsal,
  runScript,
  said,
  servedVersion,
  serverRead,
  serverSurvey,
  startScript,
} from '../harness.ts'
import { startLoad } from '../load.ts'
import { PROJECT_DIR } from '../names.ts'
import { until } from '../server.ts'

const test = suite('the files of a commit')

/** Another checkout of this repository, in which commits can be made. */
const clone = mkdtempSync(join(tmpdir(), 'kgc-clone-'))
const inClone = (path: string) => join(clone, path)
const git = (...args: string[]) =>
  local.read(sh`git -C ${clone} -c user.name=test -c user.email=test@example.invalid ${args}`)
const deployFromClone = (version: string, ...args: string[]): Promise<Run> =>
  startScript('deploy', [version, ...args], {}, clone).ended
const serverCommit = () => serverRead(sh`git -c safe.directory=/opt/kgc -C /opt/kgc rev-parse HEAD`)

test.before(async () => {
  await rehearsal()
  await local.read(
    chain(
      sh`git clone -q ${PROJECT_DIR} ${clone}`,
      sh`ln -s ${join(PROJECT_DIR, 'node_modules')} ${inClone('node_modules')}`,
    ),
  )
  writeFileSync(inClone('.git/info/exclude'), 'node_modules\n')
})
test.after(() => rmSync(clone, { recursive: true }))

const commitLine = async (path: string, line: string) => {
  appendFileSync(inClone(path), `${line}\n`)
  await git('commit', '-qam', `Test: ${line}`)
  return git('rev-parse', 'HEAD')
}

test('come with a deploy, exactly, and nginx reads them at the switch', async () => {
  const path = inClone('nginx/templates/kgc.conf.template')
  writeFileSync(
    path,
    readFileSync(path, 'utf8').replace(
      'add_header X-Release',
      'add_header X-Files new always;\n    add_header X-Release',
    ),
  )
  const operations = inClone('compose/operations.yaml')
  writeFileSync(operations, readFileSync(operations, 'utf8').replace('GRAFANA_MEMORY:-512m', 'GRAFANA_MEMORY:-513m'))
  await git('commit', '-qam', 'Test: a header')
  const commit = await git('rev-parse', 'HEAD')
  const planned = await deployFromClone('v1', '--dry-run')
  assert.is(planned.code, 0, said(planned))
  assert.match(planned.stdout, /\+ +add_header X-Files new always;/)
  assert.is((await ask(undefined)).headers['x-files'], undefined)
  const run = await deployFromClone('v1')
  assert.is(run.code, 0, said(run))
  assert.is(await serverCommit(), commit)
  assert.is((await ask(undefined)).headers['x-files'], 'new')
  assert.is(await servedVersion(), 'v1')
})

test('are compared in a dry run: it names the services that they would change, and nothing else', async () => {
  const path = inClone('compose/operations.yaml')
  writeFileSync(path, readFileSync(path, 'utf8').replace('ALERTMANAGER_MEMORY:-128m', 'ALERTMANAGER_MEMORY:-129m'))
  await git('commit', '-qam', 'Test: more memory')
  const planned = await deployFromClone('v2', '--dry-run', '--stack')
  await git('reset', '-q', '--hard', 'HEAD~1')
  assert.is(planned.code, 0, said(planned))
  assert.match(planned.stderr, /alertmanager: its definition changed/)
  assert.not.match(planned.stderr, /prometheus: its definition changed/)
  assert.match(planned.stdout, /up -d --wait --wait-timeout \d+ alertmanager\b/)
  assert.is(await serverRead(script('ls -d /tmp/tmp.* 2>/dev/null || true')), '')
})

test('that nginx refuses never replace those that serve', async () => {
  const before = await serverCommit()
  await commitLine('nginx/nginx.conf', 'no_such_directive on;')
  const run = await deployFromClone('v2')
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /unknown directive "no_such_directive"/)
  assert.is(await serverCommit(), before)
  assert.is(await servedVersion(), 'v1')
  await git('reset', '-q', '--hard', 'HEAD~1')
})

test('that Compose refuses, neither', async () => {
  const before = await serverCommit()
  await commitLine('compose/base.yaml', 'no-such-section: {}')
  const run = await deployFromClone('v2')
  assert.is(run.code, 1, said(run))
  assert.is(await serverCommit(), before)
  await git('reset', '-q', '--hard', 'HEAD~1')
})

test('that pass every test but break a route go back together with the release', async () => {
  const before = await serverCommit()
  const path = inClone('nginx/templates/kgc.conf.template')
  writeFileSync(path, readFileSync(path, 'utf8').replace('proxy_pass http://kgc_backend/;', 'return 418;'))
  await git('commit', '-qam', 'Test: a broken route')
  const run = await deployFromClone('v2')
  assert.is(run.code, 4, said(run))
  assert.match(run.stderr, /✘ API health .* came 418/)
  assert.is(await serverCommit(), before)
  assert.is((await ask(undefined, { path: '/api/health' })).status, 200)
  assert.is(await servedVersion(), 'v1')
  await git('reset', '-q', '--hard', 'HEAD~1')
})

test('of an older commit can be deployed again', async () => {
  const run = await runScript('deploy', ['v2'])
  assert.is(run.code, 0, said(run))
  assert.is(await serverCommit(), await local.read(sh`git -C ${PROJECT_DIR} rev-parse HEAD`))
  assert.is((await ask(undefined)).headers['x-files'], undefined)
})

test('come back with a rollback to the release that they served; what was changed by hand is kept', async () => {
  const planned = await runScript('rollback', ['--to', 'v1', '--dry-run'])
  assert.match(planned.stdout, /\+ +add_header X-Files new always;/)
  assert.match(planned.stderr, /These services do not run as their files say:\s+grafana: its definition changed/)
  await serverRead(script("runuser -u deploy -- sh -c 'echo by hand >> /opt/kgc/README.md'"))
  const run = await runScript('rollback', ['--to', 'v1'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /changed by hand in \/opt\/kgc on the server\. They are kept/)
  assert.equal((await serverSurvey()).dirty, [])
  const git = sh`runuser -u deploy -- git -C /opt/kgc stash`
  assert.match(await serverRead(sh`${git} show -p`), /^\+by hand$/m)
  await serverRead(sh`${git} drop -q`)
  assert.is((await ask(undefined)).headers['x-files'], 'new')
  const forth = await runScript('deploy', ['v2'])
  assert.is(forth.code, 0, said(forth))
})

test('are made whole by the next run when the server died in the middle of bringing them', async () => {
  await serverRead(
    script(
      'cd /opt/kgc && touch .git/index.lock state/checkout.pending && echo half > nginx/nginx.conf && chown deploy: .git/index.lock state/checkout.pending',
    ),
  )
  const run = await runScript('deploy', ['v1'])
  assert.is(run.code, 0, said(run))
  assert.equal((await serverSurvey()).dirty, [])
})

test('a vendor application that is down does not stand in the way of a release, and is named', async () => {
  await serverRead(
    script(
      'docker rename kgc-horilla-1 kgc-horilla-away && docker stop kgc-horilla-away && docker network disconnect -f kgc_backend-net kgc-horilla-away; docker update --restart no kgc-horilla-away',
    ),
  )
  // Something else has its address: Horilla cannot come up.
  await serverRead(
    sh`docker run -d --rm --name kgc-squatter --network kgc_backend-net --ip 172.20.4.10 nginx:1.30-alpine sleep 300`,
  )
  try {
    const run = await runScript('deploy', ['v2'])
    assert.is(run.code, 0, said(run))
    assert.match(run.stderr, /It failed before the switch, too: +✘ Horilla/)
    assert.is(await servedVersion(), 'v2')
  } finally {
    await serverRead(script('docker rm -f kgc-squatter kgc-horilla-away > /dev/null'))
  }
  const run = await runScript('deploy', ['v1'])
  assert.is(run.code, 0, said(run))
  await until(async () => (await runScript('smoke-test', ['--http-only'])).code === 0, 'Horilla')
})

test('an empty release.conf is never taken for a server without a release', async () => {
  await serverRead(script('cd /opt/kgc/state/nginx && cp -p release.conf saved && : > release.conf'))
  const run = await runScript('deploy', ['v2'])
  await serverRead(script('cd /opt/kgc/state/nginx && rm release.conf'))
  const missing = await runScript('deploy', ['v2'])
  // Then nobody can be asked, and nginx could not start without the file.
  await serverRead(sh`docker stop ${PROXY}`)
  const silent = await runScript('deploy', ['v2'])
  await serverRead(script(`cd /opt/kgc/state/nginx && mv saved release.conf && docker start ${PROXY}`))
  await until(async () => (await runScript('smoke-test', ['--http-only'])).code === 0, 'the site')
  for (const one of [run, missing, silent]) {
    assert.is(one.code, 5, said(one))
    assert.match(one.stderr, /release\.conf on the server is not a file that deploy wrote/)
  }
  assert.is(await servedVersion(), 'v1')
})

test('what a run that died before the reload wrote into release.conf is not served: nobody ever tested it', async () => {
  const { active } = await serverSurvey()
  assert.ok(active)
  const file = '/opt/kgc/state/nginx/release.conf'
  const ahead = renderActive({ color: other(active.color), version: 'v4-broken' })
  await serverRead(
    sh`cp -p ${file} ${`${file}.next`} && printf %s ${ahead} > ${`${file}.next`} && mv ${`${file}.next`} ${file}`,
  )
  const list = await runScript('rollback', ['--list'])
  assert.match(list.stderr, new RegExp(`${active.version} \\(${active.color}\\) serves`))
  const load = startLoad(front(), { rate: 20, websockets: 0 })
  const run = await runScript('deploy', ['v3-unhealthy', '--env', envWith({ HEALTH_TIMEOUT: '1' })])
  const { lost, versions } = await load.stop()
  assert.is(run.code, 1, said(run))
  assert.equal(lost, [])
  assert.equal(Object.keys(versions), [active.version])
  assert.is(await serverRead(sh`cat ${file}`), renderActive(active).trimEnd())
})

test('docker image prune leaves the releases that a rollback may need', async () => {
  await serverRead(sh`docker image prune -f`)
  const { stdout } = await runScript('rollback', ['--list', '--json'])
  const kept = (JSON.parse(stdout) as { version: string; onServer: boolean }[])
    .filter(({ onServer }) => onServer)
    .map(({ version }) => version)
  assert.ok(kept.includes('v1') && kept.includes('v2'), stdout)
})

test.run()
