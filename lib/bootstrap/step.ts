import type { Host } from '../host.ts'
import type { ServerFile } from '../put-file.ts'
import { putFiles, sha256 } from '../server-files.ts'
import { type Command, quote, script, sh } from '../shell.ts'

/** One thing that a server should be, how to see whether it is, and how to make it so. */
export type Step = {
  title: string
  /**
   * Shell text that prints a line for each thing that is not as it should be. A line that begins with `cannot:` says what
   * this machine can never be.
   */
  check: string
  /**
   * Makes it so. Every command of it can be run again, also after it was cut off in the middle.
   * @param dryRun writes are printed only, so that what they make cannot be read or tried
   */
  apply(host: Host, dryRun: boolean): Promise<void>
}

export type State = { title: string; drift: string[]; cannot: string[] }

const BEGUN = '/var/lib/kgc-bootstrap'
const LOCK = '/run/kgc-bootstrap.lock'
/** What a dead run left behind, such as apt-get, is given this long to end. */
const LEFTOVER_SECONDS = 600

/** Written before a step begins and removed when it is whole, so that one which was cut off is done again. */
const marker = ({ title }: Step) => `${BEGUN}/${title.toLowerCase().replace(/[^a-z0-9]+/g, '-')}`

/** A shell line that says when a file is not the wanted one, to the byte. */
export const checkFile = ({ path, content, owner = 'root', group = owner, mode = '600' }: ServerFile) =>
  `same ${quote(path)} ${sha256(content)} ${mode} ${owner}:${group}`

const PRELUDE = `
same() {
  [ -f "$1" ] || { echo "$1 is missing"; return; }
  [ "$(sha256sum < "$1")" = "$2  -" ] || echo "$1 differs"
  [ "$(stat -c '%a %U:%G' "$1")" = "$3 $4" ] || echo "$1 has the rights $(stat -c '%a %U:%G' "$1"), not $3 $4"
}
`

/** All checks in one round trip. */
export const surveyCommand = (steps: Step[]): Command =>
  script(
    PRELUDE +
      steps
        .map(
          (step, index) => `
echo '@@${index}'
[ ! -e ${marker(step)} ] || echo 'a run was cut off in the middle of it'
(
${step.check.trim()}
) 2>&1 < /dev/null`,
        )
        .join('\n'),
  )

/** Runs all checks; changes nothing. */
export async function surveySteps(host: Host, steps: Step[]): Promise<State[]> {
  const { stdout } = await host.probe(surveyCommand(steps), { timeout: 120 })
  return parseStates(stdout, steps)
}

export function parseStates(output: string, steps: Step[]): State[] {
  const sections = new Map(
    output
      .split(/^@@(?=\d+$)/m)
      .slice(1)
      .map((part) => {
        const [index, ...lines] = part.split('\n')
        return [Number(index), lines.filter(Boolean)]
      }),
  )
  return steps.map(({ title }, index) => {
    const lines = sections.get(index) ?? ['the check did not run']
    const cannot = lines.filter((line) => line.startsWith('cannot: '))
    return {
      title,
      drift: lines.filter((line) => !cannot.includes(line)),
      cannot: cannot.map((line) => line.slice('cannot: '.length)),
    }
  })
}

/** Does one step so that a run which dies in the middle of it is completed by the next one. */
export async function applyStep(host: Host, step: Step, dryRun: boolean): Promise<void> {
  await host.write(sh`install -d -m 700 ${BEGUN} && touch ${marker(step)}`)
  await step.apply(host, dryRun)
  await host.write(sh`rm -f ${marker(step)}`)
}

/** A host whose writes wait for each other, and for what a run that died left behind. */
export const oneAtATime = (host: Host): Host => ({
  ...host,
  write: (command, options) =>
    host.write(sh`flock -w ${LEFTOVER_SECONDS} ${LOCK} sh -c ${command.shell}`, {
      ...options,
      timeout: LEFTOVER_SECONDS + (options?.timeout ?? 60),
    }),
})

/**
 * A step that puts files in their places and then makes the server follow them.
 * @param more further checks, of what the files alone do not say
 */
export const filesStep = (title: string, files: ServerFile[], after?: Command, more = ''): Step => ({
  title,
  check: [...files.map(checkFile), more].join('\n'),
  async apply(host) {
    await putFiles(host, files)
    if (after) await host.write(after, { timeout: 120 })
  },
})
