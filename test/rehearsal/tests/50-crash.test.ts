import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Host } from '../../../lib/host.ts'
import { releaseName } from '../../../lib/release/color.ts'
import { script, sh } from '../../../lib/shell.ts'
import { docker } from '../engine.ts'
import {
  ask,
  envWith,
  forgetImages,
  front,
  makeDrift,
  onServer,
  type Run,
  rehearsal,
  runScript,
  said,
  servedVersion,
  serverRead,
  serverSurvey,
  startScript,
} from '../harness.ts'
import { type Load, startLoad } from '../load.ts'
import { SERVER } from '../names.ts'
import { until } from '../server.ts'

const test = suite('crash-only')

/** As the running scripts print them; `startsWith`, as some titles carry versions. */
const DEPLOY_STEPS = [
  'Connect',
  'Preflight',
  'Lock',
  'Files',
  'Check out',
  'Pull',
  'Idle',
  'Start v',
  'Health',
  'Switch',
  'Smoke',
  'Drain',
  'Remove',
]
const ROLLBACK_STEPS = [
  'Connect',
  'Lock',
  'Images',
  'Files',
  'Check out',
  'Idle',
  'Start v',
  'Health',
  'Switch',
  'Smoke',
  'Drain',
  'Remove',
]
const STEPS = { deploy: DEPLOY_STEPS, rollback: ROLLBACK_STEPS }

const RATE = 50
/** What takes long enough to be struck at different moments; the others are struck as soon as they begin. */
const LONG_STEPS = ['Start v', 'Health', 'Switch', 'Smoke', 'Drain', 'Migrate', 'Change the stack']
let moment = 0
/** The strikes of this file that came in another step than the one that they were meant for. */
const missed: string[] = []
let strikes = 0

/** The server's files are those of another commit. */
const otherCommit = () =>
  serverRead(
    script(
      'runuser -u deploy -- git -C /opt/kgc -c user.name=test -c user.email=test@example.invalid commit -q --allow-empty -m test',
    ),
  )
/** What makes a step work, which would find everything done. */
const PREPARE: Record<string, () => Promise<unknown>> = {
  Files: otherCommit,
  'Check out': otherCommit,
  Pull: forgetImages,
  Images: forgetImages,
  // Only a run that died while websockets were drained leaves a color that is not idle.
  Idle: async () =>
    strikeDuring('deploy', [otherVersion(await servedVersion())], 'Drain', async ({ child }) => {
      child.kill('SIGKILL')
    }),
}

/** Resolves as soon as the running script says that it is in the step. */
const inStep = ({ child, output }: ReturnType<typeof startScript>, step: string) =>
  new Promise<void>((resolve) => {
    child.stderr.on('data', () => output.stderr.includes(`::group::${step}`) && resolve())
  })

type Strike = (run: ReturnType<typeof startScript>, root: Host) => Promise<void>

/** Starts a script, waits until it is in a step, a little longer each time in a long one, and strikes. */
const strikeDuring = (name: string, args: string[], step: string, strike: Strike): Promise<Run> =>
  // Connected before: some steps are shorter than that takes.
  onServer(async (root) => {
    // Actions' groups are the one output that says when a step begins.
    const run = startScript(name, args, { GITHUB_ACTIONS: 'true' })
    await Promise.race([inStep(run, step), run.ended])
    if (LONG_STEPS.includes(step)) {
      moment = (moment + 67) % 250
      await sleep(moment)
    }
    strikes++
    const [, now = ''] = /.*::group::(.*)/s.exec(run.output.stderr) ?? []
    if (run.child.exitCode !== null || !now.startsWith(step)) missed.push(`${step} of ${name}`)
    await strike(run, root)
    return run.ended
  })

/** What serves is one release, whole: its two halves, nginx's file and the workers agree. */
async function assertOneWholeRelease(): Promise<string> {
  const { active, serving } = await serverSurvey()
  const [backend, page] = [await servedVersion(), (await ask(undefined)).body]
  assert.match(page, new RegExp(`content="${backend}"`), 'backend and frontend are of different releases')
  // Between the rename and the reload the file may be ahead; the next run makes nginx follow it.
  assert.ok(serving.endsWith(` ${backend}`), `${serving} but ${backend} answers`)
  assert.ok(active !== undefined)
  return backend
}

async function assertNextRunWorks(name: string, to: string): Promise<void> {
  const next =
    name === 'deploy'
      ? await runScript('deploy', [to, '--wait', '60'])
      : await runScript('rollback', ['--to', to, '--wait', '60'])
  // The crashed run may have got as far as the release that is asked for.
  if (!(next.code === 1 && next.stderr.includes(`${to} serves already`))) assert.is(next.code, 0, said(next))
  assert.is(await servedVersion(), to)
  const { active, serving } = await serverSurvey()
  assert.is(serving, releaseName(active))
}

const otherVersion = (version: string) => (version === 'v1' ? 'v2' : 'v1')

/** Open websockets make every deploy wait for DRAIN_TIMEOUT. */
const websocketsFor = (step: string) => (process.env.SOAK || ['Drain', 'Idle'].includes(step) ? 5 : 0)

async function whileLoaded(step: string, work: () => Promise<void>): Promise<void> {
  const load: Load = startLoad(front(), { rate: RATE, websockets: websocketsFor(step) })
  try {
    await work()
  } finally {
    const { lost } = await load.stop()
    assert.equal(lost, [])
  }
}

test.before(() => rehearsal())

const faults: {
  title: string
  /** Where it strikes when not every step is tried: the whole matrix takes half an hour. */
  some: Record<keyof typeof STEPS, string[]>
  strike: Strike
}[] = [
  {
    title: 'the runner is killed',
    some: { deploy: ['Check out', 'Start v', 'Switch', 'Drain'], rollback: ['Switch'] },
    strike: async ({ child }) => {
      child.kill('SIGKILL')
    },
  },
  {
    title: 'the SSH connection is cut',
    some: { deploy: ['Switch'], rollback: [] },
    strike: async (_run, root) => {
      await root.read(script("pkill -KILL -u deploy -f '^sshd' || true"))
    },
  },
  {
    title: "the server's dockerd is restarted",
    some: { deploy: [], rollback: ['Start v'] },
    strike: async (_run, root) => {
      // systemd refuses a service that starts too often.
      await root.read(script('systemctl reset-failed docker; systemctl restart docker'), { timeout: 120 })
    },
  },
]

const dockerdAnswers = () => until(async () => (await serverRead(sh`docker version`).catch(() => '')) !== '', 'dockerd')

/** Steps that only some deploys have, and the arguments that make a deploy have them. */
const RARE_STEPS: { step: string; args: (to: string) => Promise<string[]> }[] = [
  { step: 'Migrate', args: async (to) => [to, '--env', envWith({ MIGRATE_COMMAND: 'sleep 2' })] },
  {
    step: 'Change the stack',
    async args(to) {
      await makeDrift()
      return [to, '--stack']
    },
  },
  { step: 'Switch back', args: async () => ['v4-broken'] },
]

for (const { title, strike } of process.env.SOAK ? faults : faults.slice(0, 1)) {
  for (const { step, args } of process.env.SOAK ? RARE_STEPS : RARE_STEPS.slice(-1)) {
    test(`${title} in step "${step}" of deploy: no request is lost, and the next deploy just works`, async () => {
      const to = otherVersion(await servedVersion())
      const given = await args(to)
      await whileLoaded(step, async () => {
        await strikeDuring('deploy', given, step, strike)
        await dockerdAnswers()
        await assertOneWholeRelease()
        await assertNextRunWorks('deploy', to)
      })
    })
  }
}

for (const { title, some, strike } of faults) {
  for (const name of ['deploy', 'rollback'] as const) {
    for (const step of process.env.SOAK ? STEPS[name] : some[name]) {
      test(`${title} in step "${step}" of ${name}: no request is lost, and the next ${name} just works`, () =>
        whileLoaded(step, async () => {
          await PREPARE[step]?.()
          const to = otherVersion(await servedVersion())
          const crashed = await strikeDuring(name, name === 'deploy' ? [to] : ['--to', to], step, strike)
          if (crashed.code !== null && crashed.code !== 0) assert.match(crashed.stderr, /Failed/, said(crashed))
          await dockerdAnswers()
          await assertOneWholeRelease()
          await assertNextRunWorks(name, to)
          if (['Switch', 'Drain'].includes(step))
            await assertNextRunWorks(name === 'deploy' ? 'rollback' : 'deploy', otherVersion(to))
        }))
    }
  }
}

const RESTARTS = process.env.SOAK
  ? { deploy: DEPLOY_STEPS.slice(2), rollback: ROLLBACK_STEPS.slice(1) }
  : { deploy: ['Switch'], rollback: [] }

const restarts = Object.entries(RESTARTS).flatMap(([name, steps]) => steps.map((step) => ({ name, step })))

for (const { name, step } of restarts) {
  test(`the server is restarted in step "${step}" of ${name}: the right release comes back by itself`, async () => {
    await PREPARE[step]?.()
    const to = otherVersion(await servedVersion())
    const crashed = await strikeDuring(name, name === 'deploy' ? [to] : ['--to', to], step, async () => {
      await docker(sh`restart -t 10 ${SERVER.container}`, 120)
    })
    await until(
      async () => (await ask(undefined, { path: '/api/health' }).catch(() => undefined))?.status === 200,
      'the site',
      90,
    )
    const { active } = await serverSurvey()
    assert.is(await servedVersion(), active?.version, said(crashed))
    await assertOneWholeRelease()
    await assertNextRunWorks(name, to)
  })
}

/** Inserts or deletes the rules that swallow every packet of SSH connections, in both directions. */
const dropRules = (action: '-I' | '-D', ports: string[]) =>
  script(
    ports
      .flatMap((port) => [
        `iptables ${action} INPUT -p tcp --sport ${port} --dport 22 -j DROP`,
        `iptables ${action} OUTPUT -p tcp --dport ${port} --sport 22 -j DROP`,
      ])
      .join('\n'),
  )

test('the network between runner and server goes silent: the lock is free again within 20 s, and the next deploy works', async () => {
  const serves = await servedVersion()
  const deploys = script("ss -Htn state established '( sport = :22 )' | awk '{ print $4 }' | sed 's/.*://' | sort")
  const before = (await serverRead(deploys)).split('\n')
  let silent: string[] = []
  const struck = Date.now()
  const run = await strikeDuring(
    'deploy',
    ['v3-unhealthy', '--env', envWith({ HEALTH_TIMEOUT: '60' })],
    'Health',
    async () => {
      silent = (await serverRead(deploys)).split('\n').filter((port) => !before.includes(port))
      // Not this check's own connection: it ends by itself.
      await serverRead(dropRules('-I', silent))
      const next = await runScript('deploy', [serves, '--wait', '40'])
      assert.is(next.code, 0, said(next))
      console.log(
        `  the lock was free and the next deploy done ${((Date.now() - struck) / 1000).toFixed(0)} s after the cut`,
      )
    },
  )
  await serverRead(dropRules('-D', silent))
  assert.is.not(run.code, 0)
  assert.is(await servedVersion(), serves)
})

test('Ctrl-C before the switch stops within 7 s, exits 130 and says what serves', async () => {
  const serves = await servedVersion()
  let struck = 0
  const run = await strikeDuring(
    'deploy',
    ['v3-unhealthy', '--env', envWith({ HEALTH_TIMEOUT: '30' })],
    'Health',
    async ({ child }) => {
      struck = Date.now()
      child.kill('SIGINT')
    },
  )
  assert.ok(Date.now() - struck < 7000, `${Date.now() - struck} ms`)
  assert.is(run.code, 130, said(run))
  assert.match(run.stderr, new RegExp(`${serves} \\(\\w+\\) serves`))
  assert.is(await servedVersion(), serves)
})

for (const step of process.env.SOAK ? ['Preflight', 'Lock', 'Pull', 'Start v', 'Drain'] : ['Start v']) {
  test(`Ctrl-C in step "${step}" stops within 7 s, with one whole release serving, and the next deploy just works`, async () => {
    await PREPARE[step]?.()
    const serves = await servedVersion()
    let struck = 0
    const run = await strikeDuring('deploy', [otherVersion(serves)], step, async ({ child }) => {
      struck = Date.now()
      child.kill('SIGINT')
    })
    assert.ok(Date.now() - struck < 7000, `${Date.now() - struck} ms`)
    assert.is(run.code, 130, said(run))
    if (step !== 'Preflight') assert.match(run.stderr, /v\d \(\w+\) serves|is served by/)
    await assertOneWholeRelease()
    await assertNextRunWorks('deploy', otherVersion(await servedVersion()))
  })
}

test('Ctrl-C in the switch lets it end, then switches back', async () => {
  const serves = await servedVersion()
  const run = await strikeDuring('deploy', [otherVersion(serves)], 'Switch', async ({ child }) => {
    child.kill('SIGINT')
  })
  if (run.code !== 0) assert.is(run.code, 130, said(run))
  await sleep(12_000)
  // Longer than nginx is given to confirm a switch: nothing that was left behind may still change it.
  const { active, serving } = await serverSurvey()
  assert.is(serving, releaseName(active))
  assert.is(await servedVersion(), run.code === 0 ? otherVersion(serves) : serves)
})

test('Ctrl-C after the switch switches back first, within 7 s, also when websockets are open', async () => {
  const load = startLoad(front(), { rate: RATE, websockets: 20 })
  try {
    let run: Run | undefined
    // The smoke tests may end before they are struck.
    for (let tries = 0; tries < 5 && run?.code !== 130; tries++) {
      const serves = await servedVersion()
      const missedBefore = missed.length
      let struck = 0
      run = await strikeDuring('deploy', [otherVersion(serves)], 'Smoke', async ({ child }) => {
        struck = Date.now()
        child.kill('SIGINT')
      })
      if (missed.length > missedBefore) {
        missed.pop()
        run = undefined
        continue
      }
      assert.ok(Date.now() - struck < 7000, `${Date.now() - struck} ms`)
      assert.is(run.code, 130, said(run))
      assert.match(run.stderr, new RegExp(`${serves} \\(\\w+\\) serves`))
      assert.is(await servedVersion(), serves)
    }
    assert.is(run?.code, 130)
  } finally {
    assert.equal((await load.stop()).lost, [])
  }
})

test("GitHub's cancel reaches a deploy that was started with exec, as the workflows do", async () => {
  const run = await strikeDuring(
    'deploy',
    ['v3-unhealthy', '--env', envWith({ HEALTH_TIMEOUT: '30' })],
    'Health',
    async ({ child }) => {
      child.kill('SIGTERM')
    },
  )
  assert.is(run.code, 130, said(run))
})

test('the strikes came in the steps that they were meant for', () => {
  console.log(`  ${strikes - missed.length} of ${strikes}${missed.length > 0 ? `, not in ${missed.join(', ')}` : ''}`)
  assert.ok(missed.length <= 0.1 * strikes, missed.join(', '))
})

test.run()
