import { compose } from '../compose.ts'
import { messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { PITR, POSTGRES, ROOT } from '../layout.ts'
import { FIRST_VOLUME, PITR_RECORDS } from '../pitr/cluster.ts'
import { restoreToTime } from '../pitr/restore.ts'
import { surveyPitr } from '../pitr/server.ts'
import { type Command, script, sh } from '../shell.ts'
import type { Rebuild } from './rebuild.ts'

/** What has pgBackRest. It cannot become healthy yet: the cluster that serves is not the one whose log is in S3. */
export const startKeeper: Command = compose(sh`up -d --no-deps --no-recreate pitr`)

/** A rebuild that was begun from the log and goes on from the dumps: their cluster's log must not go where the old one's is. */
export const leaveLog: Command = script(`
cd ${ROOT}
if grep -q '^PITR=' .env; then
  docker rm -f ${POSTGRES} ${PITR} > /dev/null 2>&1 || true
  umask 077
  grep -v '^PITR=' .env > .env.next && mv .env.next .env
fi`)

/** The empty cluster that the new server began with: nobody may go back to it. */
const forgetEmpty: Command = script(`
cd ${ROOT}
rm -f ${PITR_RECORDS}
if docker volume inspect ${FIRST_VOLUME} > /dev/null 2>&1; then docker volume rm ${FIRST_VOLUME} > /dev/null; fi`)

/**
 * All databases and roles as of the last piece of the log that reached S3: at most a minute before the server was lost.
 * @param run the backup that has the same databases as dumps
 * @throws Stop that names that other way
 */
export async function clusterFromLog({ log, actor }: Rebuild, server: Host, run: string): Promise<void> {
  const isOurs = async () => (await surveyPitr(server)).live === 'ours'
  const pitrRun = { log, server, actor, dryRun: false, wait: 0, approve: async () => {} }
  if (!(await isOurs()))
    await restoreToTime(pitrRun, 'newest').catch(async (error) => {
      // A swap that a dead run began is completed, and then nothing else is.
      if (await isOurs()) return
      throw new Stop(`The databases could not be restored from the log: ${messageOf(error)}`, [
        `From the dumps of the night instead: npx tsx scripts/restore.ts --to-blank --run ${run}`,
      ])
    })
  await server.write(forgetEmpty)
}
