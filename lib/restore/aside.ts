import { gigabytes } from '../backup/catalog.ts'
import { confirmName } from '../confirm.ts'
import { EXIT, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import type { Log } from '../log.ts'
import type { Front } from '../settings.ts'
import { table } from '../table.ts'
import { exchange } from './exchange.ts'
import { dropFiles, exchangeFilesBack } from './files.ts'
import { besideName, FILES, findBeside, readStamp } from './names.ts'
import { type DatabaseServer, psql } from './server.ts'
import { dropDatabase, type Swap } from './sql.ts'
import { type Exchange, exchangeDatabases, together } from './swap.ts'

type Aside = {
  log: Log
  host: Host
  found: DatabaseServer
  confirmed: string | undefined
  dryRun: boolean
  /** Part of the names that this run gives. */
  stamp: string
}

/** What restores left on the server, for a person. */
export function describeBeside({ databases, files }: DatabaseServer): string {
  const beside = findBeside([...databases.map(({ name }) => name), ...Object.keys(files)])
  if (beside.length === 0) return 'Restores left nothing on the server.'
  const rows = beside.map(({ name, stamp, kind }) => {
    const { bytes, comment } = databases.find((one) => one.name === name) ?? {
      bytes: files[name] ?? 0,
      comment: 'the files until a restore',
    }
    const what = kind === 'restore' ? 'not whole: a run that died, or one that works now' : (comment ?? '')
    return [name, `${readStamp(stamp)} UTC`, gigabytes(bytes), what]
  })
  return table([['database', 'since', 'size', 'what it is'], ...rows])
}

/** Removes an old database or a copy. The ones that serve cannot be named here. */
export async function drop({ log, host, found, confirmed, dryRun }: Aside, name: string): Promise<void> {
  const beside = findBeside(namesOf(found)).map((one) => one.name)
  if (!beside.includes(name))
    throw new Stop(
      `${name} is not among what restores left on the server: ${beside.join(', ') || 'nothing'}.`,
      ['npx tsx scripts/restore.ts --status'],
      EXIT.usage,
    )
  await confirmName(`${name} will be removed from ${host.name}; there is no way back.`, name, dryRun ? name : confirmed)
  await log.step(`Drop ${name}`, () => host.write(dropCommand(name), { timeout: 300 }))
}

const namesOf = ({ databases, files }: DatabaseServer) => [...databases.map(({ name }) => name), ...Object.keys(files)]

const dropCommand = (name: string) =>
  name.startsWith(`${FILES}_`) ? dropFiles(findBeside([name])[0]?.stamp ?? '') : psql(dropDatabase(name))

/** What puts the databases that the last restore set aside in their places again. */
export function undoSwaps(names: string[], stamp: string, only: string[] | undefined): Swap[] {
  const old = findBeside(names).filter(({ kind, database }) => kind === 'old' && (!only || only.includes(database)))
  const last = old.filter((one) => one.stamp === old[0]?.stamp)
  if (last.length > 0)
    return last.map(({ database, name }) => ({
      database,
      next: name,
      aside: names.includes(database) || database === FILES ? besideName(database, 'old', stamp) : undefined,
      why: 'served until a restore was undone',
    }))
  throw new Stop(
    `There is nothing to undo: no restore left an old ${only?.join(', ') ?? 'database'}.`,
    ['npx tsx scripts/restore.ts --status'],
    EXIT.usage,
  )
}

function exchangesOf(swaps: Swap[], stamp: string): Exchange[] {
  const isFiles = ({ database }: Swap) => database === FILES
  const databases = swaps.filter((one) => !isFiles(one))
  return [
    ...(databases.length > 0 ? [exchangeDatabases(databases)] : []),
    ...swaps.filter(isFiles).map(({ next = '' }) => exchangeFilesBack(findBeside([next])[0]?.stamp ?? '', stamp)),
  ]
}

/**
 * Swaps back. Nothing is lost: what serves now is set aside in its turn, so undoing can be undone.
 * @param only these databases; undefined for all that the last restore swapped
 */
export async function undo(
  { log, host, found, stamp, confirmed, dryRun }: Aside,
  only: string[] | undefined,
  front: Front,
): Promise<void> {
  const swaps = undoSwaps(namesOf(found), stamp, only)
  const what = swaps.map(({ database }) => database).join(',')
  await confirmName(
    [
      `On ${host.name}:`,
      ...swaps.map(({ database, next, aside }) => `  ${next} becomes ${database}; what serves now is kept as ${aside}`),
    ].join('\n'),
    what,
    dryRun ? what : confirmed,
  )
  const away = await exchange(host, log, front, dryRun, together(exchangesOf(swaps, stamp)))
  if (dryRun) log.say('Dry run: nothing was changed.')
  else log.result(`✅ ${what} on ${host.name} is what it was before the restore. It was away for ${away.toFixed(1)} s.`)
}
