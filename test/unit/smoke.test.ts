import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Check, countsAgainst, describeCheck, runChecks } from '../../lib/smoke/smoke.ts'

const test = suite('smoke checks')

const check = (name: string, about: Check['about'], run: () => Promise<string>): Check => ({
  name,
  about,
  expected: 'fine',
  run,
})

test('a failing check is a result, not an exception, and the others run', async () => {
  const results = await runChecks([
    check('login', 'release', async () => {
      throw new Error('500')
    }),
    check('Twenty', 'surroundings', async () => '200'),
  ])
  assert.equal(
    results.map(({ name, ok, got }) => [name, ok, got]),
    [
      ['login', false, '500'],
      ['Twenty', true, '200'],
    ],
  )
  assert.match(results.map(describeCheck).join('\n'), /✘ login \(\d+ ms\): expected fine; came 500/)
})

test('they run at the same time', async () => {
  const slow = () => new Promise<string>((resolve) => setTimeout(() => resolve(''), 100))
  const started = Date.now()
  await runChecks(Array.from({ length: 10 }, (_, n) => check(`${n}`, 'release', slow)))
  assert.ok(Date.now() - started < 900)
})

test("a release answers for its own checks, and for others' only when they passed before it", () => {
  const result = (name: string, about: Check['about'], ok: boolean) => ({
    name,
    about,
    ok,
    expected: '',
    got: '',
    ms: 1,
  })
  const before = [
    result('Twenty', 'surroundings', true),
    result('Horilla', 'surroundings', false),
    result('login', 'release', false),
  ]
  assert.is(countsAgainst(result('login', 'release', false), before), true)
  assert.is(countsAgainst(result('login', 'release', true), before), false)
  assert.is(countsAgainst(result('Twenty', 'surroundings', false), before), true)
  assert.is(countsAgainst(result('Horilla', 'surroundings', false), before), false)
})

test.run()
