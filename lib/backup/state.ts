import { chmodSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { BACKUP_STATE } from './lock.ts'
import type { Manifest, Stored } from './manifest.ts'

/** What is remembered between runs on the server: for the metrics, and to know when the next run is due. Times are ISO 8601. */
export type BackupState = {
  /** When the last complete backup began, and the last one that also passed its restore test or was not due for one. */
  lastMade?: string
  lastGood?: string
  /** When one was last restored as a test. */
  lastRestored?: string
  lastRun?: { at: string; ok: boolean; seconds: number; reason?: string }
  /** Of volumes it is not known what they take in the store. */
  sizes: Record<string, { raw: number; stored?: number }>
  pruneDenied?: boolean
  /** Runs of this server since the last that ended well: what they left is nobody else's. */
  begun?: string[]
}

const STATE = `${BACKUP_STATE}/state.json`
/** Where node-exporter looks for them. */
const METRICS = `${BACKUP_STATE}/metrics/kgc_backup.prom`
const DUE_HOUR = 2
const DAY = 24 * 3600_000

export function readState(): BackupState {
  try {
    return JSON.parse(readFileSync(STATE, 'utf8')) as BackupState
  } catch {
    return { sizes: {} }
  }
}

export function writeState(state: BackupState): void {
  mkdirSync(`${BACKUP_STATE}/metrics`, { recursive: true })
  // The exporter is another user, and cron's runs have a umask that shuts it out.
  chmodSync(`${BACKUP_STATE}/metrics`, 0o755)
  put(STATE, JSON.stringify(state), 0o600)
  put(METRICS, metrics(state), 0o644)
}

/** By rename: who reads sees the old or the new, never half. */
function put(file: string, content: string, mode: number): void {
  writeFileSync(`${file}.next`, content, { mode })
  renameSync(`${file}.next`, file)
}

export const sizesOf = (manifest: Manifest): BackupState['sizes'] => ({
  ...Object.fromEntries(
    parts(manifest).map(([name, { rawBytes: raw, storedBytes: stored }]) => [name, { raw, stored }]),
  ),
  ...Object.fromEntries(Object.entries(manifest.files?.each ?? {}).map(([name, raw]) => [name, { raw }])),
})

/** Of the last good backup; one that shrank so much may be complete and wrong. */
const SHRUNK = 0.7

/** What is much smaller than before: a database, or the files of a volume. */
export const shrunkParts = (before: BackupState['sizes'], now: BackupState['sizes']): string[] =>
  Object.entries(now).flatMap(([name, { raw }]) => (raw < (before[name]?.raw ?? 0) * SHRUNK ? [name] : []))

/** Every object of a backup, by its short name. */
export function parts({ databases, globals, redis, grafana, secrets }: Manifest): [string, Stored][] {
  const others = Object.entries({ globals, redis, grafana, secrets })
  return [
    ...databases.map((database): [string, Stored] => [database.name, database]),
    ...others.flatMap(([name, part]): [string, Stored][] => (part ? [[name, part]] : [])),
  ]
}

/** Prometheus' text format. The alerts in monitoring/prometheus/rules/backup.yml read these names. */
export function metrics({ lastGood, lastRestored, lastRun, sizes, pruneDenied }: BackupState): string {
  const seconds = (iso: string) => Date.parse(iso) / 1000
  const gauge = (name: string, help: string, samples: [string, number][]) =>
    samples.length === 0
      ? []
      : [
          `# HELP kgc_backup_${name} ${help}`,
          `# TYPE kgc_backup_${name} gauge`,
          ...samples.map(([labels, value]) => `kgc_backup_${name}${labels} ${value}`),
        ]
  const one = (value: number | undefined): [string, number][] => (value === undefined ? [] : [['', value]])
  const daily = (value: number | undefined): [string, number][] =>
    value === undefined ? [] : [['{kind="daily"}', value]]
  const each = (kind: 'raw' | 'stored') =>
    Object.entries(sizes).flatMap(([part, { [kind]: size }]): [string, number][] =>
      size === undefined ? [] : [[`{part="${part}"}`, size]],
    )
  return `${[
    gauge(
      'last_success_timestamp_seconds',
      'When the last complete backup began.',
      daily((lastGood && seconds(lastGood)) || undefined),
    ),
    gauge(
      'last_restore_test_timestamp_seconds',
      'When a backup was last restored as a test.',
      one(lastRestored ? seconds(lastRestored) : undefined),
    ),
    gauge('last_run_ok', 'Whether the last run was complete.', one(lastRun && Number(lastRun.ok))),
    gauge('last_run_timestamp_seconds', 'When the last run began.', one(lastRun && seconds(lastRun.at))),
    gauge('duration_seconds', 'How long the last run took.', one(lastRun?.seconds)),
    gauge('stored_bytes', 'Size in the object store.', each('stored')),
    gauge('raw_bytes', 'Size before compression.', each('raw')),
    gauge('prune_denied', 'Whether old backups could not be removed.', one(Number(pruneDenied ?? false))),
  ]
    .flat()
    .join('\n')}\n`
}

/** The last 02:00 by the local clock (TZ is Europe/Budapest in the container). */
export function lastDueTime(now: Date): Date {
  const due = new Date(now)
  due.setHours(DUE_HOUR, 0, 0, 0)
  if (due > now) due.setDate(due.getDate() - 1)
  return due
}

/** True when no complete backup began since the last 02:00: tonight's turn, a night that was missed, or one that failed. */
export function isDue({ lastMade, lastGood }: BackupState, now: Date): boolean {
  const last = lastMade ?? lastGood
  return last === undefined || new Date(last) < lastDueTime(now)
}

/** Half a day early, so that a weekly test stays on its night. */
export const isRestoreTestDue = ({ lastRestored }: BackupState, days: number, now: Date) =>
  lastRestored === undefined || now.getTime() - Date.parse(lastRestored) > (days - 0.5) * DAY
