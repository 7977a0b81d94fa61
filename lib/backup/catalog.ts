import { messageOf } from '../errors.ts'
import type { Log } from '../log.ts'
import type { ObjectStoreSettings } from '../settings.ts'
import { table } from '../table.ts'
import {
  MANIFEST,
  type Manifest,
  type Proof,
  parseManifest,
  proofSchema,
  runKey,
  runsPrefix,
  VERIFIED,
} from './manifest.ts'
import { type ObjectStore, openStore } from './object-store.ts'
import type { KnownRun } from './retention.ts'

export type CatalogRun = KnownRun & { manifest: Manifest; proof?: Proof; bytes: number }
/** What a run left that never wrote its manifest. */
export type Leftover = { run: string; newest: Date }
/** A run whose manifest this key may not read, or this version does not know. It is left alone. */
export type Unreadable = { run: string; why: string }
export type Catalog = { runs: CatalogRun[]; leftovers: Leftover[]; unreadable: Unreadable[] }

const AT_ONCE = 8
type Group = { bytes: number; newest: Date; names: Map<string, Date> }

/** All backups in the bucket, newest first, known from the bucket alone. */
export async function readCatalog(store: ObjectStore): Promise<Catalog> {
  const prefix = runsPrefix(store.settings.S3_PREFIX)
  const byRun = new Map<string, Group>()
  for (const { key, size, modified } of await store.list(prefix)) {
    const [run = '', name = ''] = key.slice(prefix.length).split('/')
    const known = byRun.get(run) ?? { bytes: 0, newest: new Date(0), names: new Map() }
    known.bytes += size
    known.names.set(name, modified)
    if (modified > known.newest) known.newest = modified
    byRun.set(run, known)
  }
  const runs: CatalogRun[] = []
  const leftovers: Leftover[] = []
  const unreadable: Unreadable[] = []
  const read = (run: string, name: string) => store.getText(runKey(store.settings.S3_PREFIX, run, name))
  async function look([run, { bytes, newest, names }]: [string, Group]): Promise<void> {
    const stored = names.get(MANIFEST)
    if (!stored) {
      leftovers.push({ run, newest })
      return
    }
    try {
      const manifest = parseManifest((await read(run, MANIFEST)) ?? '')
      const proven = names.has(VERIFIED) ? await read(run, VERIFIED) : undefined
      const proof = proven ? { proof: proofSchema.parse(JSON.parse(proven)) } : {}
      runs.push({ manifest, stored, bytes, ...proof })
    } catch (error) {
      // One that cannot be read must neither hide the others nor stand in the way of the next.
      unreadable.push({ run, why: messageOf(error).split('\n')[0] ?? '' })
    }
  }
  const entries = [...byRun]
  for (let from = 0; from < entries.length; from += AT_ONCE)
    await Promise.all(entries.slice(from, from + AT_ONCE).map(look))
  return { runs: runs.sort((a, b) => b.manifest.started.localeCompare(a.manifest.started)), leftovers, unreadable }
}

export const gigabytes = (bytes: number) =>
  bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`

/** Prints the backups that there are, from the bucket alone. */
export async function showCatalog(log: Log, settings: ObjectStoreSettings): Promise<void> {
  const store = await openStore(settings)
  const catalog = await log.step('Read the manifests', () => readCatalog(store)).finally(store.close)
  log.result(table(catalogTable(catalog)))
  for (const { run, why } of catalog.unreadable) log.warn(`${run} cannot be read: ${why}`)
  if (catalog.leftovers.length > 0)
    log.say(`${catalog.leftovers.length} runs never ended; the next backup sweeps them away.`)
}

/** Rows for a person: the header first. */
export function catalogTable({ runs }: Catalog): string[][] {
  return [
    ['run', 'started (UTC)', 'state', 'stored', 'read back', 'restored'],
    ...runs.map(({ manifest, bytes, proof }) => [
      manifest.run,
      manifest.started.slice(0, 16).replace('T', ' '),
      manifest.complete ? 'complete' : `without ${manifest.failed.map(({ part }) => part).join(', ')}`,
      gigabytes(bytes),
      manifest.verified.read ? 'yes' : 'no',
      proof ? proof.at.slice(0, 10) : '',
    ]),
  ]
}
