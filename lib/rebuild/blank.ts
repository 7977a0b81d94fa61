import { EXIT, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { REBUILD, ROOT } from '../layout.ts'
import { valuesIn } from '../lines.ts'
import { putFile } from '../put-file.ts'
import { type Command, script, sh } from '../shell.ts'

/**
 * A rebuild that is under way, as the server remembers it: it makes the server one that may be gone on with, and no backup
 * is made while it is there.
 */
export type Begun = { run: string; fromLog: boolean; done: string[] }

const MARKER = `${ROOT}/${REBUILD}`

/** Prints what of a stack is there, one line each, then what is known of a rebuild. Needs nothing but a shell. */
const survey = script(`
[ ! -e ${ROOT}/.env ] || echo 'found=${ROOT}/.env'
if command -v docker > /dev/null; then
  docker ps -aq --filter label=com.docker.compose.project=kgc 2> /dev/null | wc -l | sed -n 's/^[1-9].*/found=& containers of the stack/p'
  docker volume ls -q --filter label=com.docker.compose.project=kgc 2> /dev/null | sed 's/^/found=volume /'
fi
sed -n 's/^{/begun=&/p' ${MARKER} 2> /dev/null
true`)

/**
 * @returns the rebuild that this one goes on with; undefined on a server that has nothing
 * @throws Stop when there is a stack on it that no rebuild made: nothing of it may be overwritten
 */
export async function surveyBlank(host: Host): Promise<Begun | undefined> {
  return parseBlank(host.name, await host.read(survey))
}

export function parseBlank(server: string, output: string): Begun | undefined {
  const { all } = valuesIn(output)
  const lines = all('begun').map((line) => JSON.parse(line) as { run?: string; fromLog?: boolean; done?: string })
  const { run, fromLog = false } = lines[0] ?? {}
  if (run) return { run, fromLog, done: lines.flatMap(({ done }) => (done ? [done] : [])) }
  const found = all('found')
  if (found.length === 0) return undefined
  throw new Stop(
    `${server} is not blank:\n${found.map((one) => `  ${one}`).join('\n')}\nNothing was touched.`,
    [
      'What is lost on a server that has a stack: npx tsx scripts/restore.ts --all',
      'Is SSH_HOST the new server? One that may be emptied: have it installed anew in the hoster’s panel.',
    ],
    EXIT.usage,
  )
}

/** From now on the server is one that is being rebuilt. The marker comes before anything else. */
export const begin = (host: Host, run: string, fromLog: boolean): Promise<string> =>
  putFile(host, MARKER, `${JSON.stringify({ run, fromLog })}\n`, { mode: '644' })

/** Remembers that a part is whole. */
export const markDone = (part: string): Command =>
  sh`echo ${JSON.stringify({ done: part })} >> ${MARKER} && sync ${MARKER}`

export const giveMarker: Command = sh`chown deploy: ${MARKER}`
export const end: Command = sh`rm ${MARKER}`
