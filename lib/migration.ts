import { compose } from './compose.ts'
import { BadRelease, messageOf } from './errors.ts'
import type { Host } from './host.ts'
import type { Log } from './log.ts'
import { type Command, sh } from './shell.ts'

const LONGEST_MIGRATION_SECONDS = 1800

/**
 * Runs the release's own migration once, in its new image, while the old release serves: so it may only expand what is
 * there. Without a command it does nothing.
 * @throws BadRelease when the command fails; nothing was switched
 */
export async function migrate(run: {
  host: Host
  log: Log
  command: string | undefined
  image: string
}): Promise<{ migration?: string }> {
  const { host, log, command, image } = run
  if (!command) return {}
  await log.step('Migrate the database', () =>
    host
      .write(migrationCommand(command, image), {
        timeout: LONGEST_MIGRATION_SECONDS,
        onLine: (line) => log.say(`  ${line}`),
      })
      .catch((error) => {
        throw new BadRelease(`The migration failed, so nothing was switched.\n${messageOf(error)}`, [
          'Read its output above. The old release still serves; whether the database changed halfway is for the migration to say.',
        ])
      }),
  )
  return { migration: command }
}

/** In a container of its own, with the backend's environment. */
export const migrationCommand = (command: string, image: string): Command =>
  sh`export MIGRATION_IMAGE=${image} && ${compose(sh`run --rm --no-deps -T kgc-migrate sh -c ${command}`)}`
