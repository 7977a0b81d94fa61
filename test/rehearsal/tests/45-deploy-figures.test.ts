import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { compose } from '../../../lib/compose.ts'
import { chain, sh } from '../../../lib/shell.ts'
import {
  forgetImages,
  onServer,
  rehearsal,
  runScript,
  said,
  servedVersion,
  serverRead,
  serverSurvey,
  startScript,
} from '../harness.ts'

const test = suite('what a deploy and a rollback take, with nothing else on the machine')

const SOAK = process.env.SOAK === '1'
const REPEATS = SOAK ? 5 : 1
/** Of v5-slow, as its image says. */
const WARM_UP_SECONDS = 3
/** From the command, node's own start included: measured 2.1 to 2.6 s. */
const BEYOND_WARM_UP_SECONDS = 3
/** Kamal 2.12 with the same work and warm-up, all done. */
const KAMAL_SECONDS = 8.2
/** The bounds hold on a quiet machine; a busy one is given room. */
const ROOM = SOAK ? 1 : 4

type Took = { toSwitch: number; whole: number }

const median = (values: number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0
const shown = (values: number[]) => `median ${median(values).toFixed(1)} s, worst ${Math.max(...values).toFixed(1)} s`
function report(what: string, took: Took[]): number[] {
  const switched = took.map(({ toSwitch }) => toSwitch)
  console.log(`  ${what}: all traffic moved ${shown(switched)}; done ${shown(took.map(({ whole }) => whole))}`)
  return switched
}

/** Runs a script that must succeed. Seconds from the command, node's own start included. */
async function timed(name: string, args: string[]): Promise<Took> {
  const started = performance.now()
  const { child, output, ended } = startScript(name, args)
  let toSwitch = Number.NaN
  child.stderr.on('data', () => {
    if (Number.isNaN(toSwitch) && /✔ Switch to /.test(output.stderr)) toSwitch = (performance.now() - started) / 1000
  })
  const run = await ended
  assert.is(run.code, 0, said(run))
  return { toSwitch, whole: run.seconds }
}

async function repeat(work: () => Promise<Took>): Promise<Took[]> {
  const took = []
  for (let n = 0; n < REPEATS; n++) took.push(await work())
  return took
}

const other = async () => ((await servedVersion()) === 'v1' ? 'v2' : 'v1')

test.before(() => rehearsal())

const withSoak = SOAK ? test : () => {}

let deploys: Took[] = []
test('a deploy of a release that is healthy at once', async () => {
  deploys = await repeat(async () => timed('deploy', [await other()]))
  assert.ok(median(report('deploy', deploys)) < BEYOND_WARM_UP_SECONDS * ROOM)
})

withSoak(`a deploy of a release that warms up for ${WARM_UP_SECONDS} s`, async () => {
  const took = await repeat(async () => {
    const one = await timed('deploy', ['v5-slow'])
    await timed('deploy', [await other()])
    return one
  })
  const beyond = report(`deploy with ${WARM_UP_SECONDS} s of warm-up`, took).map((seconds) => seconds - WARM_UP_SECONDS)
  assert.ok(median(beyond) < BEYOND_WARM_UP_SECONDS, `${median(beyond)} s beyond the warm-up`)
  assert.ok(median(took.map(({ whole }) => whole)) < KAMAL_SECONDS)
})

test('the bare commands on the server: pull, and up --force-recreate of the color that does not serve', async () => {
  const color = (await serverSurvey()).active?.color === 'blue' ? 'green' : 'blue'
  const pair = [`kgc-backend-${color}`, `kgc-frontend-${color}`]
  const bare = chain(compose(sh`pull -q ${pair}`), compose(sh`up -d --no-deps --force-recreate ${pair}`))
  const took: number[] = []
  for (let n = 0; n < REPEATS; n++) {
    const started = performance.now()
    await onServer((host) => host.read(bare, { timeout: 120 }), 'deploy')
    took.push((performance.now() - started) / 1000)
  }
  await serverRead(sh`docker stop ${pair.map((service) => `kgc-${service}-1`)}`)
  const ratio = median(deploys.map(({ whole }) => whole)) / median(took)
  console.log(
    `  bare commands, without a gate, a switch or a look at the result: ${shown(took)}; a deploy takes ${ratio.toFixed(1)} times as long`,
  )
})

withSoak('a rollback to a release whose containers are kept: less than 5 s', async () => {
  const took = await repeat(async () => timed('rollback', ['--to', await other()]))
  assert.ok(Math.max(...report('rollback, kept', took)) < 5)
})

withSoak('a rollback to a release that has to be pulled again', async () => {
  const took = await repeat(async () => {
    await forgetImages()
    return timed('rollback', ['--to', await other()])
  })
  report('rollback, pulled', took)
})

withSoak('a bad release is switched back, while the one before is still warm: less than 1 s', async () => {
  const took: number[] = []
  for (let n = 0; n < REPEATS; n++) {
    const run = await runScript('deploy', ['v4-broken'])
    assert.is(run.code, 4, said(run))
    took.push(Number(/Switch back to .* ([\d.]+) s/.exec(run.stderr)?.[1]))
  }
  console.log(`  switched back: ${shown(took)}`)
  assert.ok(Math.max(...took) < 1, shown(took))
})

test.run()
