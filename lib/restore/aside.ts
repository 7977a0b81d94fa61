import { gigabytes } from '../backup/catalog.ts'
import { confirmName } from '../confirm.ts'
import { EXIT, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { clustersAside, describeReplacement, dropCluster, lastReplacement } from '../pitr/aside.ts'
import type { Replacement } from '../pitr/cluster.ts'
import type { Found as Clusters } from '../pitr/server.ts'
import { surveyPitr } from '../pitr/server.ts'
import { table } from '../table.ts'
import { undoCluster } from './cluster.ts'
import { readExchange } from './cut-off.ts'
import { exchange } from './exchange.ts'
import { dropFiles, exchangeFilesBack } from './files.ts'
import { besideName, FILES, findBeside, readStamp, stampOf } from './names.ts'
import { type DatabaseServer, psql, surveyDatabases, withWorkshop } from './server.ts'
import { locked, type Session } from './session.ts'
import { dropDatabase, type Swap } from './sql.ts'
import { type Exchange, exchangeDatabases, together } from './swap.ts'

/** What restores of either kind left. `server` is undefined when PostgreSQL does not answer. */
export type Aside = {
  server: DatabaseServer | undefined
  clusters: Clusters
  /** What works now, or was cut off. */
  exchange?: Exchange | undefined
}

export async function surveyAside(host: Host): Promise<Aside> {
  const clusters = await surveyPitr(host)
  const [server, exchange] = await Promise.all([
    clusters.live === 'down' ? undefined : surveyDatabases(host),
    readExchange(host),
  ])
  return { clusters, server, exchange }
}

/**
 * What restores left on the server, for a person.
 * @param more what else there is, when it was looked for
 */
export function describeAside(server: DatabaseServer | undefined, more?: Omit<Aside, 'server'>): string {
  const rows = [
    ...(server ? rowsBeside(server) : []),
    ...(more ? clustersAside(more.clusters) : []).map(({ name, since, what }) => [name, readIso(since), '', what]),
  ]
  const left =
    rows.length === 0
      ? 'Restores left nothing on the server.'
      : table([['name', 'since', 'size', 'what it is'], ...rows])
  return more?.exchange
    ? `${left}\nThe exchange of ${more.exchange.what} works now, or was cut off half way: then the next restore or undo completes it first.`
    : left
}

const readIso = (at: string) => at && `${at.slice(0, 19).replace('T', ' ')} UTC`

const rowsBeside = (server: DatabaseServer) =>
  findBeside(namesOf(server)).map(({ name, stamp, kind }) => {
    const { bytes, comment } = server.databases.find((one) => one.name === name) ?? {
      bytes: server.files[name] ?? 0,
      comment:
        kind === 'copy' ? 'restored files that served until they were exchanged back' : 'the files until a restore',
    }
    const what = kind === 'restore' ? 'not whole: a run that died, or one that works now' : (comment ?? '')
    return [name, `${readStamp(stamp)} UTC`, gigabytes(bytes), what]
  })

/** Removes an old database or cluster, or a copy. The ones that serve cannot be named here. */
export async function drop(session: Session, { server, clusters }: Aside, name: string): Promise<void> {
  const old = clustersAside(clusters).map((one) => one.name)
  const beside = [...(server ? findBeside(namesOf(server)) : []).map((one) => one.name), ...old]
  if (!beside.includes(name))
    throw new Stop(
      `${name} is not among what restores left on the server: ${beside.join(', ') || 'nothing'}.`,
      ['npx tsx scripts/restore.ts --status'],
      EXIT.usage,
    )
  const { log, dryRun, confirmed } = session
  await confirmName(
    `${name} will be removed from ${session.server.name}; there is no way back.`,
    name,
    dryRun ? name : confirmed,
  )
  await locked(session, `drop of ${name}`, (host) =>
    log.step(`Drop ${name}`, async () => {
      if (old.includes(name)) await dropCluster(host, name)
      else await host.write(dropCommand(name), { timeout: 300 })
    }),
  )
}

const namesOf = ({ databases, files }: DatabaseServer) => [...databases.map(({ name }) => name), ...Object.keys(files)]

const dropCommand = (name: string) => (name.startsWith(`${FILES}_`) ? dropFiles(name) : psql(dropDatabase(name)))

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

/**
 * Who is asked may take an hour, and holds no lock meanwhile.
 * @throws Stop when another run changed what the question was about
 */
export function assertAsAsked(asked: string[], now: string[]): void {
  if (asked.join() !== now.join())
    throw new Stop('Another run restored or removed something meanwhile. Nothing was touched.', ['Run this again.'])
}

function exchangesOf(swaps: Swap[], stamp: string): Exchange[] {
  const isFiles = ({ database }: Swap) => database === FILES
  const databases = swaps.filter((one) => !isFiles(one))
  return [
    ...(databases.length > 0 ? [exchangeDatabases(databases)] : []),
    ...swaps.filter(isFiles).map(({ next = '' }) => exchangeFilesBack(findBeside([next])[0]?.stamp ?? '', stamp)),
  ]
}

/** When this was set aside, ISO 8601; empty for nothing. */
function setAside(name: string | undefined): string {
  const [one] = findBeside(name ? [name] : [])
  return one ? `${readStamp(one.stamp).replace(' ', 'T')}Z` : ''
}

/**
 * Which restore came last, of a whole cluster or of databases and files.
 * @returns the replacement of the cluster when it is that
 */
export function lastOfAll({ server, clusters }: Aside): Replacement | undefined {
  const replacement = lastReplacement(clusters)
  const old = (server ? findBeside(namesOf(server)) : []).find(({ kind }) => kind === 'old')
  return replacement && replacement.at > setAside(old?.name) ? replacement : undefined
}

/**
 * Takes back the last restore, of either kind. Nothing is lost: what serves now is set aside in its turn, so undoing can
 * be undone.
 * @param only these databases, or the files; undefined for all that the last restore swapped
 */
export async function undo(session: Session, aside: Aside, only: string[] | undefined): Promise<void> {
  const replacement = only ? undefined : lastOfAll(aside)
  if (replacement) return undoCluster(session, `On ${session.server.name} ${describeReplacement(replacement)}.`)
  const { server } = aside
  if (!server)
    throw new Stop('PostgreSQL does not answer, and there is no restore of the whole cluster to undo.', [
      'docker logs --tail 30 kgc-postgres-1',
    ])
  // PostgreSQL may have come up since it was too early to complete this.
  if (aside.exchange && !session.dryRun)
    throw new Stop(`The exchange of ${aside.exchange.what} is half done. Nothing was touched.`, ['Run this again.'])
  await undoDatabases(session, server, only)
}

async function undoDatabases(session: Session, server: DatabaseServer, only: string[] | undefined): Promise<void> {
  const { log, config, confirmed, dryRun } = session
  const { name } = session.server
  const names = namesOf(server)
  const stamp = stampOf(new Date())
  const swaps = undoSwaps(names, stamp, only)
  const what = swaps.map(({ database }) => database).join(',')
  await confirmName(
    [
      `On ${name} the restore of databases or files of ${readIso(setAside(swaps[0]?.next))} is undone:`,
      ...swaps.map(({ database, next, aside }) => `  ${next} becomes ${database}; what serves now is kept as ${aside}`),
    ].join('\n'),
    what,
    dryRun ? what : confirmed,
  )
  const away = await locked(session, 'undo of a restore', (host) =>
    withWorkshop(host, async () => {
      assertAsAsked(names, namesOf(await surveyDatabases(host)))
      return exchange(host, log, config.front, dryRun, together(exchangesOf(swaps, stamp)))
    }),
  )
  if (dryRun) log.say('Dry run: nothing was changed.')
  else log.result(`✅ ${what} on ${name} is what it was before the restore. It was away for ${away.toFixed(1)} s.`)
}
