import { EXIT, Stop } from '../errors.ts'
import { RECORDS, ROOT } from '../layout.ts'
import { type Command, sh } from '../shell.ts'

export type Images = { backend: string; frontend: string }

/** One line of state/releases.jsonl: written once when a run begins and once when it ends, under the same id. */
export type ReleaseRecord = {
  id: string
  action: 'deploy' | 'rollback'
  version: string
  /** What served before. */
  from?: string
  images: Images
  /** Commit of this repository whose files serve. */
  commit: string
  actor: string
  /** The workflow run, when one did it. */
  runUrl?: string
  at: string
  outcome: 'started' | 'good' | 'bad' | 'failed'
  reason?: string
  /** Seconds by step. */
  timings?: Record<string, number>
  seconds?: number
  /** The command that changed the databases for this release. */
  migration?: string
  /** Whether it ended well; not known of one that was cut off. */
  migrated?: boolean
}

/** What is known of a version. `left` is one that served well until somebody rolled back from it. */
export type Release = Pick<
  ReleaseRecord,
  'version' | 'images' | 'commit' | 'actor' | 'at' | 'seconds' | 'migration'
> & {
  state: 'good' | 'bad' | 'left' | 'failed' | 'interrupted'
  /** When its migration ran. */
  migratedAt?: string
}

/** @throws Stop (exit 2) unless the text is a version such as v123 */
export function parseVersion(text: string): string {
  if (/^v\d+(-[a-z0-9]+)*$/.test(text)) return text
  throw new Stop(
    `'${text}' is not a version.`,
    ['A version is the tag that CI pushed: v and a number, such as v123.'],
    EXIT.usage,
  )
}

/** One record per run, oldest first: its last line wins. A torn line (the server died while writing) is left out. */
export function parseRecords(jsonLines: string): ReleaseRecord[] {
  const runs = new Map<string, ReleaseRecord>()
  for (const line of jsonLines.split('\n')) {
    try {
      const record = JSON.parse(line) as ReleaseRecord
      runs.set(record.id, { ...runs.get(record.id), ...record })
    } catch {}
  }
  return [...runs.values()].filter(({ version, images }) => version && images)
}

/** Appends one line. It begins with a newline so that a line torn by a crash cannot spoil this one. */
export const appendRecord = (record: Partial<ReleaseRecord> & { id: string }): Command =>
  sh`cd ${ROOT} && printf ${'\n%s\n'} ${JSON.stringify(record)} >> ${RECORDS}`

/** Every version that was ever tried, the one that was last switched to first. */
export function releases(records: ReleaseRecord[]): Release[] {
  const byVersion = new Map<string, Release>()
  for (const { version, images, commit, actor, at, seconds, migration, outcome, action, from } of records) {
    const known = byVersion.get(version)
    // What served well does not become bad: a later failure is more likely the server's, and the tests guard it again.
    const servedWell = known?.state === 'good' || known?.state === 'left'
    const migrations = migration ? { migration, migratedAt: at } : pick(known, 'migration', 'migratedAt')
    if (known && servedWell && outcome !== 'good') {
      Object.assign(known, migrations)
      continue
    }
    byVersion.delete(version)
    byVersion.set(version, {
      ...{ version, images, commit, actor, at, state: outcome === 'started' ? 'interrupted' : outcome },
      ...(seconds === undefined ? {} : { seconds }),
      ...migrations,
    })
    const leftBehind =
      action === 'rollback' && outcome === 'good' && from !== version ? byVersion.get(from ?? '') : undefined
    if (leftBehind?.state === 'good') leftBehind.state = 'left'
  }
  return [...byVersion.values()].reverse()
}

/** Versions that served well, the newest first, those that were left by a rollback too. */
export const goodVersions = (records: ReleaseRecord[]): string[] =>
  releases(records)
    .filter(({ state }) => state === 'good' || state === 'left')
    .map(({ version }) => version)

/**
 * The release to go back to: the named one, or the last that served well before the one that serves.
 * @throws Stop when there is none, or when the named one is known to be bad and `force` is not set
 */
export function rollbackTarget(all: Release[], serving: string, to: string | undefined, force: boolean): Release {
  const see = ['npx tsx scripts/rollback.ts --list']
  if (to === undefined) {
    const last = all.find(({ state, version }) => state === 'good' && version !== serving)
    if (last) return last
    throw new Stop(`There is no release before ${serving} that served well, so there is nothing to go back to.`, see)
  }
  const named = all.find(({ version }) => version === to)
  if (!named) throw new Stop(`${to} was never deployed on this server.`, [...see, `npx tsx scripts/deploy.ts ${to}`])
  if (to === serving) throw new Stop(`${to} serves already.`, see)
  if (named.state !== 'good' && named.state !== 'left' && !force) {
    throw new Stop(`${to} is known as ${named.state}, so it is refused.`, [
      ...see,
      `If you must: npx tsx scripts/rollback.ts --to ${to} --force`,
    ])
  }
  return named
}

/** The releases that changed the databases since the target last ran: its code has not been seen with that schema. */
export function migrationsSince(all: Release[], target: Release): Release[] {
  return all.filter(({ migratedAt = '', version }) => version !== target.version && migratedAt > target.at)
}

function pick<T extends object, K extends keyof T>(from: T | undefined, ...keys: K[]): Partial<Pick<T, K>> {
  return Object.fromEntries(keys.flatMap((key) => (from?.[key] === undefined ? [] : [[key, from[key]]]))) as Partial<
    Pick<T, K>
  >
}
