import { hostname } from 'node:os'
import type { Config } from '../config.ts'
import { messageOf, Stop } from '../errors.ts'
import type { Log } from '../log.ts'
import { sh } from '../shell.ts'
import { readCatalog } from './catalog.ts'
import { checkServer, closeAll, DATABASES, takeSnapshots } from './databases.ts'
import { backUpFiles, checkFiles } from './files.ts'
import type { DatabaseBackup, Manifest } from './manifest.ts'
import { MANIFEST, manifestText, newRunId } from './manifest.ts'
import type { ObjectStore } from './object-store.ts'
import * as part from './parts.ts'
import { text } from './pipeline.ts'
import { type Progress, trackProgress } from './progress.ts'
import { type BackupRun, newIdentity, putText } from './store.ts'

/** What a backup works with, inside the backup-service container. */
export type Service = {
  log: Log
  config: Config<'objectStore' | 'backup' | 'notify'>
  store: ObjectStore
  signal: AbortSignal
  started: Date
  onProgress: (progress: Progress) => void
}

export type Found = Pick<Manifest, 'server' | 'clockOffsetSeconds' | 'tools'> & {
  /** The complete backup before this one. */
  last: Manifest | undefined
  /** Of the databases, in bytes. */
  sizes: Record<string, number>
}

/** S3 refuses requests from 15 minutes off. */
const MOST_CLOCK_OFFSET = 300
const TOOLS = {
  pg_dump: sh`pg_dump --version`,
  zstd: sh`zstd --version`,
  age: sh`age --version`,
  restic: sh`restic version`,
}

/** Looks at everything that a backup needs, and changes nothing. @throws Stop that names the first thing that is missing */
export async function preflight({ store, signal }: Service): Promise<Found> {
  const clockOffsetSeconds = await store.check()
  if (Math.abs(clockOffsetSeconds) > MOST_CLOCK_OFFSET) {
    throw new Stop(
      `This server's clock is ${Math.abs(clockOffsetSeconds)} s off that of ${store.settings.S3_ENDPOINT}.`,
      ['timedatectl'],
    )
  }
  const { runs } = await readCatalog(store, { anyFailure: true })
  const last = runs.find(({ manifest }) => manifest.complete)?.manifest
  const tools: Record<string, string> = { node: process.version }
  for (const [name, command] of Object.entries(TOOLS)) tools[name] = await text(command, { what: name, signal })
  const { server, sizes } = await checkServer(Number(/ (\d+)/.exec(tools.pg_dump ?? '')?.[1]))
  return { server, clockOffsetSeconds, tools, last, sizes }
}

export async function newRun(
  { config, started, store, signal, onProgress }: Service,
  found: Found,
): Promise<BackupRun> {
  return {
    id: newRunId(started, hostname()),
    store,
    signal,
    recipients: config.backup.BACKUP_RECIPIENTS,
    own: await newIdentity(signal),
    onProgress: trackProgress(part.expectedSizes(found.last, found.sizes), onProgress),
  }
}

/**
 * Makes one backup: everything into the object store, all of it read back, the manifest last. A part that fails is named in
 * the manifest, and the other parts are kept.
 * @param diedHere a run of this server ended otherwise than well, and may have left locks
 * @throws Stop when there is nothing worth a manifest
 */
export async function backUp(service: Service, found: Found, run: BackupRun, diedHere: boolean): Promise<Manifest> {
  const { log, store, signal, started } = service
  const { server, clockOffsetSeconds, tools } = found
  const failed: Manifest['failed'] = []
  async function attempt<T>(title: string, work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await log.step(title, work, 'whole')
    } catch (error) {
      if (signal.aborted) throw error
      failed.push({ part: title, error: messageOf(error).split('\n').slice(0, 3).join(' ') })
      log.warn(messageOf(error))
      // Without the store every other part would fail as well, each after all its tries.
      await store.check()
      return undefined
    }
  }
  const proven = async <T>(title: string, stored: T | undefined, read: (stored: T) => Promise<T>) =>
    stored && (await attempt(`Read back: ${title}`, () => read(stored)))

  const dumps: DatabaseBackup[] = []
  const snapshots = await log.step('Snapshots', () => takeSnapshots(DATABASES, signal))
  try {
    // The largest first: what is left to its end is then the least.
    for (const snapshot of snapshots.sort((a, b) => b.about.size - a.about.size)) {
      const dump = await attempt(snapshot.name, () => part.backUpDatabase(run, snapshot))
      if (dump) dumps.push(dump)
    }
  } finally {
    await closeAll(snapshots.map(({ client }) => client))
  }
  if (dumps.length === 0)
    throw new Stop('No database could be backed up.', failed.map(({ error }) => error).slice(0, 1))
  const globals = await attempt('roles', () => part.backUpGlobals(run))
  const redis = await attempt('job queue', () => part.backUpRedis(run))
  const grafana = await attempt('Grafana', () => part.backUpGrafana(run))
  const secrets = await attempt('secrets', () => part.backUpSecrets(run))
  const on = { settings: store.settings, signal }
  const files = await attempt('files', () => backUpFiles(on, run.id, hostname(), diedHere))

  const reading = performance.now()
  const databases: DatabaseBackup[] = []
  for (const dump of dumps) {
    const read = await proven(dump.name, dump, (stored) => part.readDump(run, stored))
    if (read) databases.push(read)
  }
  const others = {
    globals: await proven('roles', globals, (stored) => part.readPart(run, 'globals', stored)),
    redis: await proven('job queue', redis, (stored) => part.readPart(run, 'redis', stored)),
    grafana: await proven('Grafana', grafana, (stored) => part.readPart(run, 'grafana', stored)),
    secrets: await proven('secrets', secrets, (stored) => part.readPart(run, 'secrets', stored)),
    files: await proven('files', files, async (stored) => checkFiles(on).then(() => stored)),
  }
  const ended = new Date().toISOString()
  const manifest: Manifest = {
    ...{ schema: 1 as const, run: run.id, host: hostname(), started: started.toISOString(), ended },
    ...{ complete: failed.length === 0, failed, commit: process.env.KGC_COMMIT ?? '' },
    ...{ server, clockOffsetSeconds, tools, recipients: run.recipients, databases, ...others },
    verified: { read: failed.length === 0, at: ended, seconds: (performance.now() - reading) / 1000 },
  }
  await log.step('Manifest', () => putText(run, MANIFEST, manifestText(manifest)), 'whole')
  return manifest
}
