import { messageOf } from '../errors.ts'

export type Check = {
  name: string
  /** Whether a new release can be at fault; of the rest, only what worked before the switch counts against it. */
  about: 'release' | 'surroundings'
  /** What a healthy system answers. */
  expected: string
  /** Returns what came; throws when that is not what was expected. */
  run(): Promise<string>
}

export type CheckResult = Pick<Check, 'name' | 'about' | 'expected'> & { ok: boolean; got: string; ms: number }

/** What a failed check says against a release: nothing, when the release cannot be at fault and it failed before, too. */
export const countsAgainst = (result: CheckResult, before: CheckResult[]) =>
  !result.ok && (result.about === 'release' || before.some(({ name, ok }) => name === result.name && ok))

export const describeCheck = ({ name, ok, expected, got, ms }: CheckResult) =>
  ok ? `  ✔ ${name} (${ms} ms)` : `  ✘ ${name} (${ms} ms): expected ${expected}; came ${got}`

/** Runs all checks at the same time. Never throws: a check that fails is a result. */
export async function runChecks(checks: Check[]): Promise<CheckResult[]> {
  return Promise.all(
    checks.map(async ({ name, about, expected, run }) => {
      const started = performance.now()
      const [ok, got] = await run().then(
        (value): [boolean, string] => [true, value],
        (error): [boolean, string] => [false, messageOf(error)],
      )
      return { name, about, ok, expected, got, ms: Math.round(performance.now() - started) }
    }),
  )
}
