import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { PROXY } from '../../../lib/layout.ts'
import { script, sh } from '../../../lib/shell.ts'
import { docker } from '../engine.ts'
import {
  envWith,
  front,
  inContainer,
  makeDrift,
  onTerminal,
  rehearsal,
  runScript,
  said,
  servedVersion,
  serverRead,
  serverSurvey,
} from '../harness.ts'
import { startLoad } from '../load.ts'
import { REGISTRY } from '../names.ts'
import { startRegistry } from '../server.ts'

const test = suite('history, rollback, plan')

type Row = {
  version: string
  state: string
  current: boolean
  onServer: boolean
  commit: string
  actor: string
  seconds?: number
  migration?: string
}
const list = async () => JSON.parse((await runScript('rollback', ['--list', '--json'])).stdout) as Row[]
const row = async (version: string) => (await list()).find((one) => one.version === version)

/** All that could change on the server but by a deploy: files, containers, images, networks, volumes, nginx's workers. */
const state = () =>
  serverRead(
    script(`
cd /opt/kgc && find . -type f -not -path './.git/objects/*' -printf '%p %s %T@\\n' | sort
docker ps -a --no-trunc --format '{{.ID}} {{.Names}} {{.State}} {{.CreatedAt}}' | sort
docker images --no-trunc --format '{{.ID}} {{.Repository}} {{.Tag}} {{.Digest}}' | sort
docker network ls -q | sort; docker volume ls -q | sort
docker exec kgc-nginx-proxy-1 sh -c "ps -o pid= -o args= | grep '[n]ginx'"
find /home/deploy /tmp -type f -not -name 'runc-process*' -printf '%p %s %T@\\n' 2>/dev/null | sort`),
  )

const deployed = async (version: string, env: Record<string, string> = {}) => {
  const run = await runScript('deploy', [version, '--env', envWith({ SLACK_WEBHOOK_URL: '', ...env })])
  assert.is(run.code, 0, said(run))
  return run
}

test.before(async () => {
  await rehearsal()
  await deployed('v1')
  await deployed('v2')
})

test('lists the releases with commit, who, when, how long and state', async () => {
  const run = await runScript('rollback', ['--list'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, /^version +state +commit +who +when +took +on the server$/m)
  assert.match(run.stdout, /^v2 +good, current +[0-9a-f]{7} +\S+ +\d{4}-\d\d-\d\d \d\d:\d\d +[\d.]+ s +yes$/m)
})

test("records GitHub's actor as who did it", async () => {
  const run = await runScript('deploy', ['v2'], {
    GITHUB_ACTOR: 'nagy-anna',
    GITHUB_SERVER_URL: 'https://github.example',
    GITHUB_REPOSITORY: 'kgc/runbooks',
    GITHUB_RUN_ID: '77',
  })
  assert.is(run.code, 0, said(run))
  assert.is((await row('v2'))?.actor, 'nagy-anna')
  assert.match(
    await serverRead(sh`cat /opt/kgc/state/releases.jsonl`),
    /"runUrl":"https:\/\/github\.example\/kgc\/runbooks\/actions\/runs\/77"/,
  )
})

test('records the duration of each step and the digests', async () => {
  const { records } = await serverSurvey()
  const last = records.at(-1)
  for (const step of [
    'Pull v2',
    'Start v2 as',
    'Health gate',
    'Switch to',
    'Smoke tests',
    'Drain and stop',
    'Remove old',
  ])
    assert.ok(
      Object.entries(last?.timings ?? {}).some(([title, seconds]) => title.startsWith(step) && seconds >= 0),
      step,
    )
  assert.match(last?.images.backend ?? '', /@sha256:[0-9a-f]{64}$/)
  const { active } = await serverSurvey()
  for (const [part, image] of Object.entries(last?.images ?? {}))
    assert.is(
      await serverRead(sh`docker inspect -f ${'{{.Config.Image}}'} ${`kgc-kgc-${part}-${active?.color}-1`}`),
      image,
    )
})

test('--dry-run prints the plan and changes nothing', async () => {
  for (const args of [
    ['deploy', 'v1'],
    ['deploy', 'v1', '--stack'],
    ['rollback', '--to', 'v1'],
  ]) {
    const [name = '', ...rest] = args
    const before = await state()
    const run = await runScript(name, [...rest, '--dry-run'])
    assert.is(run.code, 0, said(run))
    assert.is(await state(), before)
    assert.match(run.stdout, /docker compose [\s\S]*up -d --no-deps kgc-backend-(blue|green) kgc-frontend-(blue|green)/)
    assert.match(run.stdout, /upstream kgc_backend/)
    assert.match(run.stderr, /Dry run: nothing was changed\./)
    assert.match(
      run.stdout,
      /# release v2 -> v1\n# - \S+\/backend@sha256:\S+\n# - \S+\/frontend@sha256:\S+\n# \+ \S+\/backend@sha256:\S+\n# \+ \S+\/frontend@/,
    )
  }
})

test('goes back to the last good release with the registry unreachable, and says how long it took to the last request', async () => {
  await docker(sh`stop ${REGISTRY.container}`)
  const load = startLoad(front(), { rate: 20, websockets: 0 })
  try {
    const began = Date.now()
    const run = await runScript('rollback')
    assert.is(run.code, 0, said(run))
    const { versions, startedAt } = await load.stop()
    const switched = (versions.v2?.last.msSinceStart ?? 0) + Date.parse(startedAt) - began
    console.log(`  from the command to all traffic on the old release: ${(switched / 1000).toFixed(1)} s`)
    // Measured 2.6 s; the bound leaves room for a busy machine.
    assert.ok(switched < 12_000, `${switched} ms`)
    assert.is(await servedVersion(), 'v1')
  } finally {
    await load.stop()
    await startRegistry()
  }
})

test('shows the release that was left, and goes there again when it is named', async () => {
  assert.is((await row('v2'))?.state, 'left')
  const nothing = await runScript('rollback')
  assert.is(nothing.code, 1, said(nothing))
  assert.match(nothing.stderr, /nothing to go back to/)
  const named = await runScript('rollback', ['--to', 'v2'])
  assert.is(named.code, 0, said(named))
  assert.is(await servedVersion(), 'v2')
})

test('goes back to a release whose containers are gone, from its image', async () => {
  await serverRead(script('docker rm -f $(docker ps -aq --filter status=exited --filter name=kgc-kgc-) > /dev/null'))
  const run = await runScript('rollback', ['--to', 'v1'])
  assert.is(run.code, 0, said(run))
  await deployed('v2')
})

test('refuses a release known to be bad, and takes it with --force only to find it bad again', async () => {
  await runScript('deploy', ['v4-broken'])
  const refused = await runScript('rollback', ['--to', 'v4-broken'])
  assert.is(refused.code, 1, said(refused))
  assert.match(refused.stderr, /v4-broken is known as bad/)
  const forced = await runScript('rollback', ['--to', 'v4-broken', '--force'])
  assert.is(forced.code, 4, said(forced))
  assert.is(await servedVersion(), 'v2')
})

test('a release that is no longer on the server and not in the registry leaves the one that serves', async () => {
  const before = await servedVersion()
  await docker(sh`stop ${REGISTRY.container}`)
  try {
    await serverRead(
      script(
        "docker rm -f $(docker ps -aq --filter status=exited --filter name=kgc-kgc-) > /dev/null 2>&1; docker images --format '{{.Repository}}@{{.Digest}}' --digests | grep -e '/backend@' -e '/frontend@' | xargs -r -n 1 docker rmi 2>/dev/null || true",
      ),
    )
    const run = await runScript('rollback', ['--to', 'v1'])
    assert.is(run.code, 1, said(run))
    assert.match(run.stderr, /v2 \(\w+\) serves/)
    assert.is(await servedVersion(), before)
  } finally {
    await startRegistry()
  }
})

test('runs the migration once in the new image, with the old release serving, and records it', async () => {
  await deployed('v1')
  const run = await deployed('v2', { MIGRATE_COMMAND: 'node /app/app.cjs migrate && echo migrated as $VERSION' })
  assert.is(run.stderr.split('migrated as v2').length, 2, said(run))
  assert.match(run.stderr, /✔ Migrate the database[\s\S]*✔ Switch to/)
  assert.match((await row('v2'))?.migration ?? '', /app\.cjs migrate/)
  assert.is((await serverSurvey()).records.at(-1)?.migrated, true)
})

test('going back past a migration asks; where nobody can be asked it wants --yes', async () => {
  const refused = await runScript('rollback', ['--to', 'v1'])
  assert.is(refused.code, 2, said(refused))
  assert.match(refused.stderr, /The database was migrated after v1: v2 [\s\S]*Give --yes/)
  const denied = await onTerminal('rollback', ['--to', 'v1'], /\(y\/N\)/, 'n')
  assert.is(denied.code, 2, denied.shown)
  assert.match(denied.shown, /The database was migrated after v1: v2 [\s\S]*Not confirmed; nothing was changed/)
  assert.is(await servedVersion(), 'v2')
  const confirmed = await runScript('rollback', ['--to', 'v1', '--yes'])
  assert.is(confirmed.code, 0, said(confirmed))
})

test('a migration that fails stops the deploy with nothing switched', async () => {
  const run = await runScript('deploy', [
    'v2',
    '--env',
    envWith({ MIGRATE_COMMAND: 'echo cannot add the column to $DATABASE_URL; exit 75' }),
  ])
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /The migration failed, so nothing was switched/)
  assert.match(run.stderr, /cannot add the column to postgresql:\/\/\w+:\*\*\*@postgres/)
  assert.is(await servedVersion(), 'v1')
  const last = (await serverSurvey()).records.at(-1)
  assert.is(last?.outcome, 'bad')
  assert.is(last?.migrated, false)
  assert.match(last?.reason ?? '', /The migration failed[\s\S]*cannot add the column/)
})

test('removes images beyond the kept releases, never one that serves or is kept', async () => {
  await deployed('v2', { KEEP_RELEASES: '2' })
  await runScript('deploy', ['v3-unhealthy', '--env', envWith({ HEALTH_TIMEOUT: '1' })])
  await deployed('v1', { KEEP_RELEASES: '2' })
  const rows = await list()
  for (const { version, onServer } of rows) assert.is(onServer, ['v1', 'v2'].includes(version), version)
})

test('a rollback keeps as many releases as a deploy: the one that it goes to counts once', async () => {
  const keep = { KEEP_RELEASES: '3', SLACK_WEBHOOK_URL: '' }
  await deployed('v2', keep)
  await deployed('v5-slow', keep)
  const run = await runScript('rollback', ['--to', 'v2', '--env', envWith(keep)])
  assert.is(run.code, 0, said(run))
  for (const version of ['v1', 'v2', 'v5-slow']) assert.is((await row(version))?.onServer, true, version)
})

test('starts nginx where it does not run: there would be nothing to switch', async () => {
  await serverRead(sh`docker stop ${PROXY}`)
  const run = await runScript('rollback', ['--to', 'v1'])
  assert.is(run.code, 0, said(run))
  assert.is(await servedVersion(), 'v1')
})

test('names the services that differ from their files, and changes them with --stack only', async () => {
  await makeDrift()
  const named = await deployed('v2')
  assert.match(named.stderr, /blackbox-exporter: its definition changed/)
  assert.match(named.stderr, /deploy with --stack changes them/)
  const run = await runScript('deploy', ['v1', '--stack'])
  assert.is(run.code, 0, said(run))
  const again = await deployed('v2')
  assert.not(again.stderr.includes('blackbox-exporter'), said(again))
})

test('stops with exit code 5 when release.conf is not what a script wrote, and works again when it is put back', async () => {
  await serverRead(
    script('cd /opt/kgc/state/nginx && cp -p release.conf saved && sed -i s/kgc-frontend-/kgc-backend-/ release.conf'),
  )
  const run = await runScript('deploy', ['v1'])
  await serverRead(script('cd /opt/kgc/state/nginx && mv saved release.conf'))
  assert.is(run.code, 5, said(run))
  assert.match(run.stderr, /release\.conf/)
  await deployed('v1')
})

test('nginx never lost a word of it: its workers and the file agree', async () => {
  const { active, serving } = await serverSurvey()
  assert.is(serving, `${active?.color} ${active?.version}`)
  assert.is((await inContainer('nginx-proxy', sh`nginx -t -q -c /etc/nginx/kgc/nginx.conf`)).code, 0)
})

test.run()
