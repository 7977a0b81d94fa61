import { setTimeout as sleep } from 'node:timers/promises'
import { EXIT, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import type { Log } from '../log.ts'
import type { Front } from '../settings.ts'
import { databaseChecks, httpChecks } from '../smoke/checks.ts'
import { type Check, type CheckResult, describeCheck, runChecks } from '../smoke/smoke.ts'
import { type Exchange, KEPT, reversed, swap } from './swap.ts'

/** A front door that has just learned of a restarted application may need a moment. */
const TRIES = 5
const BETWEEN_TRIES_MS = 2_000

/**
 * Swaps databases or files, and swaps them back when what worked before does not work with them.
 * @returns seconds that the applications of these databases were away
 * @throws Stop with exit code 1 (not swapped), 4 (swapped and back) or 5 (it is not known which serves)
 */
export async function exchange(host: Host, log: Log, front: Front, dryRun: boolean, what: Exchange): Promise<number> {
  const checks = [...httpChecks(front), ...databaseChecks(host)]
  const before = dryRun ? [] : await log.step('Smoke tests before', () => runChecks(checks))
  const down = await log.step(`Swap ${what.what}`, () => swap(host, what), 'whole')
  if (dryRun) return down
  try {
    await log.step('Smoke tests', () => smoke(checks, before, log))
  } catch (error) {
    await log
      .step('Swap back', () => swap(host, reversed(what)), 'always')
      .catch((failure) => {
        throw new Stop(
          `${messageOf(error)}\nSwapping back failed, too: ${messageOf(failure)}`,
          ['npx tsx scripts/restore.ts --status', 'npx tsx scripts/smoke-test.ts'],
          EXIT.needsHuman,
        )
      })
    throw new Stop(`${messageOf(error)}\nIt was swapped back: what served before serves.`, KEPT, EXIT.rolledBack)
  }
  return down
}

/** What failed before as well says nothing about the databases. */
async function smoke(checks: Check[], before: CheckResult[], log: Log): Promise<void> {
  let worse: CheckResult[] = []
  for (let tries = 0; tries < TRIES; tries++) {
    if (tries > 0) await sleep(BETWEEN_TRIES_MS)
    const results = await runChecks(checks)
    worse = results.filter(({ name, ok }) => !ok && before.some((old) => old.name === name && old.ok))
    if (worse.length > 0) continue
    for (const failed of results.filter(({ ok }) => !ok))
      log.warn(`It failed before the swap, too:${describeCheck(failed)}`)
    return
  }
  throw new Stop(`${worse.length} checks passed before the swap and fail now:\n${worse.map(describeCheck).join('\n')}`)
}
