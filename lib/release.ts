import { EXIT, Stop } from './errors.ts'

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
  migration?: { command: string; output: string }
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

/** One record per run, oldest first: its last line wins. A torn last line (the server died while writing) is left out. */
export function parseRecords(jsonLines: string): ReleaseRecord[] {
  const runs = new Map<string, ReleaseRecord>()
  for (const line of jsonLines.split('\n')) {
    try {
      const record = JSON.parse(line) as ReleaseRecord
      runs.set(record.id, { ...runs.get(record.id), ...record })
    } catch {}
  }
  return [...runs.values()]
}

/** The images of the newest good run of a version. */
export const goodImages = (records: ReleaseRecord[], version: string): Images | undefined =>
  records.findLast((run) => run.version === version && run.outcome === 'good')?.images

/** Versions that served well, the newest first, each once. */
export const goodVersions = (records: ReleaseRecord[]): string[] => [
  ...new Set(
    records
      .filter((run) => run.outcome === 'good')
      .map((run) => run.version)
      .reverse(),
  ),
]
