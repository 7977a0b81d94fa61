import { confirmName } from '../confirm.ts'
import { EXIT, messageOf, Stop } from '../errors.ts'
import { type PitrRun, restoreBesideOnly, restoreToTime, undoRestore } from '../pitr/restore.ts'
import { waitForBackup } from '../pitr/server.ts'
import { httpChecks } from '../smoke/checks.ts'
import { describeCheck, runChecks } from '../smoke/smoke.ts'
import type { When } from '../when.ts'
import type { Session } from './session.ts'

/**
 * Restores the whole cluster to a moment, and looks at the site afterwards.
 * @param keepSide no swap: it is left running beside what serves
 * @throws Stop that says what serves now
 */
export async function restoreCluster(session: Session, when: When, keepSide: boolean): Promise<void> {
  if (keepSide) return restoreBesideOnly(pitrRun(session), when)
  await restoreToTime(pitrRun(session), when)
  await afterSwap(session)
}

/**
 * The cluster that the last restore to a moment replaced serves again.
 * @param which says so to whoever confirms it
 */
export async function undoCluster(session: Session, which: string): Promise<void> {
  await undoRestore(pitrRun(session, `${which}\n`))
  await afterSwap(session)
}

const pitrRun = ({ log, server, dryRun, actor, wait, config, confirmed }: Session, preface = ''): PitrRun => ({
  ...{ log, server, dryRun, actor, wait },
  approve: (question) => confirmName(`${preface}${question}`, config.server.SSH_HOST, confirmed),
})

async function afterSwap({ log, server, config, dryRun }: Session): Promise<void> {
  if (dryRun) return
  log.say('  Back to the one before, which is kept until you remove it: npx tsx scripts/restore.ts --undo')
  const results = await log.step('Smoke tests', () => runChecks(httpChecks(config.front)))
  const failed = results.filter(({ ok }) => !ok)
  for (const result of failed) log.result(describeCheck(result))
  if (failed.length > 0)
    throw new Stop(
      `The restored cluster serves, and ${failed.length} smoke tests fail.`,
      ['npx tsx scripts/smoke-test.ts, to see whether it lasts.', 'Back: npx tsx scripts/restore.ts --undo'],
      EXIT.needsHuman,
    )
  await log
    .step('First backup of the new line of the log', () => waitForBackup(server))
    .catch((error) => {
      if (error instanceof Stop && error.code === EXIT.interrupted) throw error
      log.warn(
        `The restored cluster serves, but no backup of it is in S3 yet: if the server is lost now, the cluster before it comes back. See \`docker logs --tail 30 kgc-pitr-1\` on the server.\n${messageOf(error)}`,
      )
    })
}
