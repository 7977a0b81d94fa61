import { EXIT, type ExitCode, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { BACKUP_SERVICE } from '../layout.ts'
import type { Log } from '../log.ts'
import { sh } from '../shell.ts'
import { describeProgress, type Progress } from './progress.ts'

/** Longer than the longest backup: the snapshots of one that hangs hold back the databases' cleaning up. */
export const LONGEST_BACKUP_SECONDS = 4 * 3600

/** How the program in the container tells the one outside how far it is: a line of JSON on stdout. */
export const progressLine = (progress: Progress) => JSON.stringify({ progress })

/** @returns undefined for any other line */
export function parseProgress(line: string): Progress | undefined {
  if (!line.startsWith('{"progress":')) return undefined
  return (JSON.parse(line) as { progress: Progress }).progress
}

/**
 * Starts the backup in its container and shows what it says. The run goes on there when this connection breaks.
 * @throws Stop when the container does not run
 */
export async function backUpThere(log: Log, host: Host, flags: string[]): Promise<ExitCode> {
  const state = await host.probe(sh`docker inspect -f ${'{{.State.Running}}'} ${BACKUP_SERVICE}`)
  if (state.stdout.trim() !== 'true') {
    throw new Stop(`${BACKUP_SERVICE} does not run on ${host.name}.`, [
      'npx tsx scripts/deploy.ts <the release that serves> --stack',
    ])
  }
  const show = (line: string) => {
    const progress = parseProgress(line)
    if (progress) log.progress(describeProgress(progress))
    else log.say(`  ${line}`)
  }
  const work = () =>
    host.probe(sh`docker exec ${BACKUP_SERVICE} backup --progress ${flags}`, {
      timeout: LONGEST_BACKUP_SECONDS,
      onLine: show,
    })
  const { code } = await log.step(`Backup in ${BACKUP_SERVICE} on ${host.name}`, async () => {
    const result = await work()
    if (result.code === null)
      throw new Stop(`The connection to ${host.name} broke; the backup goes on there.`, [
        'npx tsx scripts/backup.ts --list',
      ])
    if (result.code !== EXIT.done)
      throw new Stop('The backup did not end well; its own words are above.', [], asExit(result.code))
    return result
  })
  return asExit(code ?? EXIT.failed)
}

const asExit = (code: number): ExitCode =>
  (Object.values(EXIT) as number[]).includes(code) ? (code as ExitCode) : EXIT.failed
