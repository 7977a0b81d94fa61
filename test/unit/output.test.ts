import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Flag, helpText, nearest, parse, type Usage } from '../../lib/cli.ts'
import { EXIT, Stop } from '../../lib/errors.ts'
import { createLog, seconds } from '../../lib/log.ts'
import { redactor } from '../../lib/redact.ts'
import { table } from '../../lib/table.ts'

const test = suite('what a run shows')

function capture(
  options: { isTTY?: boolean; env?: Record<string, string>; heartbeatSeconds?: number; signal?: AbortSignal } = {},
) {
  const written = { stdout: '', stderr: '' }
  const stream = (name: 'stdout' | 'stderr') => ({
    isTTY: options.isTTY ?? false,
    write: (text: string) => {
      written[name] += text
    },
  })
  return { written, log: createLog({ env: {}, ...options, stdout: stream('stdout'), stderr: stream('stderr') }) }
}

test('results go to stdout, progress to stderr', async () => {
  const { written, log } = capture()
  await log.step('Pull', async () => log.say('  layer'))
  log.result('done')
  assert.is(written.stdout, 'done\n')
  assert.match(written.stderr, /^ {2}layer\n✔ Pull 0\.\d s\n$/)
})

test('without a terminal there are whole lines and no control codes, with one there is a live line', async () => {
  const plain = capture()
  await plain.log.step('Pull', async () => {})
  assert.not(plain.written.stderr.includes('\x1b'))
  const live = capture({ isTTY: true })
  await live.log.step('Pull', async () => {})
  assert.ok(live.written.stderr.includes('\r\x1b[2K'))
})

test('NO_COLOR is honored on a terminal', async () => {
  const { written, log } = capture({ isTTY: true, env: { NO_COLOR: '1' } })
  await log.step('Pull', async () => {})
  assert.not(written.stderr.includes('\x1b[3'))
})

test('a long step gives a sign of life where there is no terminal', async () => {
  const { written, log } = capture({ heartbeatSeconds: 0.01 })
  await log.step('Pull', () => new Promise((resolve) => setTimeout(resolve, 50)))
  assert.match(written.stderr, /… Pull, 0\.\d s so far/)
})

test('GitHub Actions gets groups', async () => {
  const { written, log } = capture({ env: { GITHUB_ACTIONS: 'true' } })
  await log.step('Pull', async () => {})
  assert.match(written.stderr, /^::group::Pull\n✔ Pull .*\n::endgroup::\n$/)
})

test('a failing step is marked, timed, and remembered as the one that failed', async () => {
  const { written, log } = capture()
  await log.step('Pull', () => Promise.reject(new Error('no'))).catch(() => {})
  assert.match(written.stderr, /✘ Pull/)
  assert.is(log.current, 'Pull')
  assert.type(log.timings.Pull, 'number')
})

test('an interruption ends the running step and lets only the steps that make good begin', async () => {
  const controller = new AbortController()
  const { log } = capture({ signal: controller.signal })
  const running = log.step('Pull', () => new Promise(() => {})).catch((error) => error)
  controller.abort()
  assert.is(((await running) as Stop).code, EXIT.interrupted)
  assert.is(await log.step('Switch', async () => 1).catch((error) => error.code), EXIT.interrupted)
  assert.is(await log.step('Switch back', async () => 1, 'always'), 1)
})

test('secrets are blanked at the one place where everything comes out, also encoded', () => {
  const secret = 'sentinel/secret+7'
  const clean = redactor([secret, 'abc'])
  assert.is(clean(`a ${secret} b ${encodeURIComponent(secret)}`), 'a *** b ***')
  assert.not(clean(Buffer.from(secret).toString('base64')).includes('c2VudGluZWw'))
  assert.is(clean('abc'), 'abc')
})

test('secrets are blanked in steps, too', async () => {
  const { written, log } = capture()
  log.hide(redactor(['sentinel-secret']))
  await log.step('Pull sentinel-secret', async () => log.say('sentinel-secret'))
  log.result('sentinel-secret')
  assert.not(`${written.stdout}${written.stderr}`.includes('sentinel'))
})

const USAGE: Usage<Record<'env' | 'dry-run', Flag>> = {
  name: 'deploy',
  summary: 'Deploys.',
  positionals: { names: ['vN'], required: 1 },
  flags: {
    env: { type: 'string', value: 'FILE', help: 'the file' },
    'dry-run': { type: 'boolean', short: 'n', help: 'changes nothing' },
  },
  examples: ['v1'],
}

test('arguments: known ones are read, unknown ones refused with the nearest, missing ones named', () => {
  const args = parse(USAGE, ['v1', '--env', 'x', '-n'])
  assert.equal(args, { positionals: ['v1'], flags: { env: 'x', 'dry-run': true } })
  for (const [given, says] of [
    [['v1', '--dryrun'], /no option --dryrun\. Did you mean --dry-run\?/],
    [['v1', '--frobnicate'], /no option --frobnicate\.$/],
    [[], /argument vN is missing/],
    [['v1', 'v2'], /Unexpected argument 'v2'/],
    [['v1', '--env'], /argument missing/],
    [['v1', '-x'], /Unknown option '-x'/],
  ] as const) {
    try {
      parse(USAGE, [...given])
      assert.unreachable()
    } catch (error) {
      assert.instance(error, Stop)
      assert.is((error as Stop).code, EXIT.usage)
      assert.match((error as Stop).message, says)
    }
  }
})

test('help has usage, flags, examples and exit codes', () => {
  const text = helpText(USAGE)
  for (const part of [
    'Usage: npx tsx scripts/deploy.ts vN [options]',
    '--env FILE',
    '-n, --dry-run',
    'Examples:',
    'Exit codes:',
  ]) {
    assert.ok(text.includes(part), part)
  }
})

test('finds the near word, and none when none is near', () => {
  assert.is(nearest('dryrun', ['env', 'dry-run']), 'dry-run')
  assert.is(nearest('zzzzzz', ['env', 'dry-run']), undefined)
})

test('says durations as people do', () => {
  assert.is(seconds(0.44), '0.4 s')
  assert.is(seconds(272), '4 min 32 s')
})

test('lines up a table', () => {
  assert.is(
    table([
      ['a', 'bb'],
      ['ccc', 'd'],
    ]),
    'a    bb\nccc  d',
  )
})

test.run()
