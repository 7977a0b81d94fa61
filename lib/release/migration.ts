import { compose } from '../compose.ts'
import { BadRelease, EXIT, messageOf, Stop } from '../errors.ts'
import { CommandFailed, type Host } from '../host.ts'
import { BACKUP_LOCK, HELD_BY_ANOTHER, ROOT } from '../layout.ts'
import type { Log } from '../log.ts'
import { withoutSecrets } from '../secrets.ts'
import { type Command, sh } from '../shell.ts'

const LONGEST_MIGRATION_SECONDS = 1800
/** A backup of 100 GB takes about as long; then the deploy is to be repeated. */
const WAIT_FOR_BACKUP_SECONDS = 900

type Migration = {
  host: Host
  log: Log
  /** Adds to the record of this run. */
  note(line: { migration: string; migrated?: boolean }): Promise<unknown>
  command: string | undefined
  image: string
}

/**
 * Runs the release's own migration once, in its new image, while the old release serves: so it may only expand what is
 * there. It is recorded before it runs, since one that is cut off may have changed the database as well. Without a command it does nothing.
 * @throws BadRelease when the command fails; nothing was switched
 */
export async function migrate({ host, log, note, command, image }: Migration): Promise<void> {
  if (!command) return
  await log.step('Migrate the database', async () => {
    await note({ migration: command })
    const show = (line: string) => log.say(`  ${line}`)
    await host
      .write(migrationCommand(command, image), {
        timeout: WAIT_FOR_BACKUP_SECONDS + LONGEST_MIGRATION_SECONDS,
        onLine: show,
      })
      .catch(async (error) => {
        if (error instanceof CommandFailed && error.result.code === HELD_BY_ANOTHER) {
          throw new Stop(
            'A backup is running, and a migration has to wait for it. Nothing was switched.',
            ['Deploy again when it has ended: npx tsx scripts/backup.ts --list'],
            EXIT.locked,
          )
        }
        await note({ migration: command, migrated: false }).catch(() => {})
        throw new BadRelease(`The migration failed, so nothing was switched.\n${messageOf(error)}`, [
          'Read its output above. The old release still serves; whether the database changed halfway is for the migration to say.',
        ])
      })
    await note({ migration: command, migrated: true })
  })
}

/** In a container of its own, with the backend's environment. */
function migrationCommand(command: string, image: string): Command {
  const run = compose(sh`run --rm --no-deps -T kgc-migrate sh -c ${command}`)
  // HELD_BY_ANOTHER is the lock's word, never the migration's.
  const own = sh`${withoutSecrets(run)} || { code=$?; [ $code -ne ${HELD_BY_ANOTHER} ] || code=1; exit $code; }`
  return sh`export MIGRATION_IMAGE=${image} && ${afterBackup(own)}`
}

/** Holds the lock of the backups meanwhile. */
function afterBackup(command: Command): Command {
  const lock = `${ROOT}/${BACKUP_LOCK}`
  return sh`if [ -e ${lock} ]; then flock -w ${WAIT_FOR_BACKUP_SECONDS} -E ${HELD_BY_ANOTHER} ${lock} sh -c ${command.shell}; else ${command}; fi`
}
