import { messageOf } from '../errors.ts'
import type { Log } from '../log.ts'
import type { ObjectStoreSettings } from '../settings.ts'
import { table } from '../table.ts'
import {
  Damaged,
  type Failure,
  failureSchema,
  MANIFEST,
  type Manifest,
  NOT_RESTORED,
  type Proof,
  parseManifest,
  proofSchema,
  runKey,
  runsPrefix,
  VERIFIED,
} from './manifest.ts'
import { type ObjectStore, openStore } from './object-store.ts'
import { Denied } from './object-store-errors.ts'
import type { KnownRun } from './retention.ts'

export type CatalogRun = KnownRun & {
  manifest: Manifest
  proof?: Proof
  failure?: Failure
  bytes: number
  /** Its manifest was overwritten or marked as removed, and is read in its first version. */
  hidden?: true
}
/** What a run left that never wrote its manifest. */
export type Leftover = { run: string; newest: Date }
/** A run whose manifest this key may not read, or this version does not know. It is left alone. */
export type Unreadable = { run: string; why: string }
export type Catalog = { runs: CatalogRun[]; leftovers: Leftover[]; unreadable: Unreadable[] }

const AT_ONCE = 8
type Group = { bytes: number; newest: Date; names: Map<string, Date>; hidden?: string }

/**
 * All backups in the bucket, newest first, known from the bucket alone.
 * @param anyFailure one that cannot be had for whatever reason is only named: for a new backup, which waits for no old one.
 * Whoever chooses among them must not take a broken connection for a broken backup.
 * @param wanted the run that was chosen already: then another is only named, too
 */
export async function readCatalog(
  store: ObjectStore,
  { anyFailure = false, wanted }: { anyFailure?: boolean; wanted?: string | undefined } = {},
): Promise<Catalog> {
  const runs: CatalogRun[] = []
  const leftovers: Leftover[] = []
  const unreadable: Unreadable[] = []
  const read = (run: string, name: string, versionId?: string) =>
    store.getText(runKey(store.settings.S3_PREFIX, run, name), versionId)
  async function helpful(run: string, name: string, otherwise: (error: unknown) => string) {
    try {
      return await read(run, name)
    } catch (error) {
      // What removes backups leaves one alone of which it does not know all.
      if (anyFailure) throw error
      return otherwise(error)
    }
  }
  async function look([run, { bytes, newest, names, hidden }]: [string, Group]): Promise<void> {
    const stored = names.get(MANIFEST)
    if (!stored) {
      leftovers.push({ run, newest })
      return
    }
    try {
      const manifest = parseManifest((await read(run, MANIFEST, hidden)) ?? '')
      if (manifest.run !== run) throw new Damaged(`The manifest is that of ${manifest.run}.`)
      const proof = names.has(VERIFIED) ? parsed(proofSchema, await helpful(run, VERIFIED, () => '')) : {}
      const failed = names.get(NOT_RESTORED)
      const why = () => helpful(run, NOT_RESTORED, (error) => unknownFailure(run, failed, error))
      const failure = failed ? parsed(failureSchema, await why()) : {}
      runs.push({
        ...{ manifest, stored, bytes, ...(hidden === undefined ? {} : { hidden: true }) },
        ...{ ...(proof.data ? { proof: proof.data } : {}), ...(failure.data ? { failure: failure.data } : {}) },
      })
    } catch (error) {
      // One that cannot be read must neither hide the others nor stand in the way of the next.
      const isOther = wanted !== undefined && wanted !== run
      if (!(anyFailure || isOther || error instanceof Damaged || error instanceof Denied)) throw error
      unreadable.push({ run, why: messageOf(error).split('\n')[0] ?? '' })
    }
  }
  const entries = [...(await groups(store))]
  for (let from = 0; from < entries.length; from += AT_ONCE)
    await Promise.all(entries.slice(from, from + AT_ONCE).map(look))
  return { runs: runs.sort((a, b) => b.manifest.started.localeCompare(a.manifest.started)), leftovers, unreadable }
}

/** What is stored of each run. */
async function groups(store: ObjectStore): Promise<Map<string, Group>> {
  const prefix = runsPrefix(store.settings.S3_PREFIX)
  const byRun = new Map<string, Group>()
  const groupOf = (key: string): [Group, string] => {
    const [run = '', name = ''] = key.slice(prefix.length).split('/')
    const known = byRun.get(run) ?? { bytes: 0, newest: new Date(0), names: new Map() }
    byRun.set(run, known)
    return [known, name]
  }
  for (const { key, size, modified } of await store.list(prefix)) {
    const [group, name] = groupOf(key)
    group.bytes += size
    group.names.set(name, modified)
    if (modified > group.newest) group.newest = modified
  }
  // Object lock keeps versions, but not that they are seen: who stole the key can hide a backup behind a mark or another text.
  for (const { key, modified, versionId } of (await store.hidden(prefix, MANIFEST)) ?? []) {
    const [group, name] = groupOf(key)
    group.names.set(name, modified)
    group.hidden = versionId
  }
  return byRun
}

/** That there is such a record says that the run failed, also when the record cannot be had. */
const unknownFailure = (run: string, at: Date | undefined, error: unknown): string =>
  JSON.stringify({ schema: 1, run, at, by: '', error: `the reason cannot be read: ${messageOf(error).split('\n')[0]}` })

/** What is written beside a manifest helps, and is not needed. */
function parsed<T>(schema: { safeParse: (value: unknown) => { data?: T } }, json = ''): { data?: T } {
  try {
    return schema.safeParse(JSON.parse(json))
  } catch {
    return {}
  }
}

/**
 * The backups to choose from for a restore, with what a person must know of the others. One that failed its restore test
 * counts as not complete: it is taken by its name alone.
 * @param run the one that was asked for, if one was
 */
export async function catalogToRestore(
  store: ObjectStore,
  log: Pick<Log, 'warn'>,
  run: string | undefined,
): Promise<Catalog> {
  const catalog = await readCatalog(store, { wanted: run === 'latest' ? undefined : run })
  for (const problem of problemsOf(catalog)) log.warn(problem)
  const runs = catalog.runs.map((run) =>
    run.failure ? { ...run, manifest: { ...run.manifest, complete: false } } : run,
  )
  return { ...catalog, runs }
}

const problemsOf = ({ runs, unreadable }: Catalog): string[] => [
  ...unreadable.map(({ run, why }) => `${run} cannot be read: ${why}`),
  ...runs.flatMap(({ manifest: { run }, failure, hidden }) => [
    ...(failure ? [`${run} did not come up in its restore test: ${failure.error}`] : []),
    ...(hidden ? [`Somebody overwrote or removed the manifest of ${run}; its first version is taken.`] : []),
  ]),
]

export const gigabytes = (bytes: number) =>
  bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`

/** Prints the backups that there are, from the bucket alone. */
export async function showCatalog(log: Log, settings: ObjectStoreSettings): Promise<void> {
  const store = await openStore(settings)
  const all = () => readCatalog(store, { anyFailure: true })
  const catalog = await log.step('Read the manifests', all).finally(store.close)
  log.result(table(catalogTable(catalog)))
  for (const problem of problemsOf(catalog)) log.warn(problem)
  if (catalog.leftovers.length > 0)
    log.say(`${catalog.leftovers.length} runs never ended, or still work; what is dead, later backups sweep away.`)
}

/** Rows for a person: the header first. */
export function catalogTable({ runs }: Catalog): string[][] {
  return [
    ['run', 'started (UTC)', 'state', 'stored', 'read back', 'restored'],
    ...runs.map(({ manifest, bytes, proof, failure }) => [
      manifest.run,
      manifest.started.slice(0, 16).replace('T', ' '),
      manifest.complete ? 'complete' : `without ${manifest.failed.map(({ part }) => part).join(', ')}`,
      gigabytes(bytes),
      manifest.verified.read ? 'yes' : 'no',
      failure ? 'FAILED' : (proof?.at.slice(0, 10) ?? ''),
    ]),
  ]
}
