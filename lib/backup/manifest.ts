import { createHash, randomBytes } from 'node:crypto'
import { z } from 'zod'
import { messageOf, Stop } from '../errors.ts'

/**
 * A backup is what its manifest says. The manifest is written last, so a run without one never happened; it is the only
 * thing that a restore believes. All sizes are bytes, all times ISO 8601 in UTC, all hashes SHA-256 in hex.
 */
export const MANIFEST = 'manifest.json'
/** Written beside the manifest when the run was restored into a throwaway server. */
export const VERIFIED = 'verified.json'
/** Written beside the manifest when it could not be. */
export const NOT_RESTORED = 'not-restored.json'

const when = z.iso.datetime()
const hash = z.string().regex(/^[0-9a-f]{64}$/)
const count = z.number().int().min(0)
/** Whoever may write to the bucket writes manifests, too: what becomes a path or a part of a command has no other characters. */
const word = (pattern: RegExp) => z.string().regex(pattern)

/** One object in the bucket: something (raw) that was compressed with zstd, then encrypted with age (stored). */
const stored = z.object({
  key: z.string(),
  rawBytes: count,
  rawSha256: hash,
  storedBytes: count,
  storedSha256: hash,
  parts: count,
  partSize: count,
  /** Of that version of the object, where the bucket keeps versions. */
  versionId: z.string().optional(),
  /** From the first byte read to the last one stored. */
  seconds: z.number(),
})

const database = stored.extend({
  name: word(/^\w+$/),
  snapshot: z.string(),
  /** Where the write-ahead log was when the snapshot was taken, and when that was. */
  lsn: z.string(),
  at: when,
  /** pg_database_size: what a restore needs on disk, about. */
  size: count,
  /** Exact, counted in the snapshot that was dumped. Names are quoted as SQL wants them: "Schema"."Table". */
  rows: z.record(z.string(), count),
  owner: z.string(),
  /** What pg_dump without --create leaves out: GRANTs on the database, and ALTER DATABASE / ROLE IN DATABASE … SET. */
  acl: z.array(z.string()).nullable(),
  settings: z.array(z.object({ role: z.string().nullable(), setting: z.string() })),
  extensions: z.record(z.string(), z.string()),
  encoding: z.string(),
  collate: z.string(),
  ctype: z.string(),
  localeProvider: z.enum(['icu', 'libc']),
  icuLocale: z.string().nullable(),
  collationVersion: z.string().nullable(),
  connectionLimit: z.number().int(),
})

const files = z.object({
  repository: word(/^[\w-]+(\/[\w-]+)*$/),
  snapshot: word(/^[0-9a-f]{8,64}$/),
  paths: z.array(z.string()),
  files: count,
  bytes: count,
  /** Bytes in each volume. */
  each: z.record(z.string(), count).optional(),
})

const manifestSchema = z.object({
  schema: z.literal(1),
  run: word(/^[\w.-]+$/),
  host: z.string(),
  started: when,
  ended: when,
  /** False when a part failed; then it is never counted as the last good backup. */
  complete: z.boolean(),
  failed: z.array(z.object({ part: z.string(), error: z.string() })),
  /** Of this repository, when the image was built. */
  commit: z.string(),
  tools: z.record(z.string(), z.string()),
  server: z.object({ versionNum: count, systemIdentifier: z.string() }),
  /** The object store's clock minus this host's. */
  clockOffsetSeconds: z.number(),
  /** The public keys whose owners can read this. */
  recipients: z.array(z.string()),
  databases: z.array(database),
  /** Roles, their passwords' hashes and memberships: SQL by pg_dumpall --globals-only. */
  globals: stored.optional(),
  /** The job queue: an RDB file. */
  redis: stored.optional(),
  /** Grafana's SQLite database. */
  grafana: stored.optional(),
  /** A tar of .env, secrets/ and certs/ of the server, without which the rest cannot be read, and its record of releases. */
  secrets: stored.optional(),
  /** The volumes, in a restic repository below the same prefix. */
  files: files.optional(),
  /** Whether every object was fetched again, decrypted and read to its end before this was written. */
  verified: z.object({ read: z.boolean(), at: when, seconds: z.number() }),
})

/** `restored` has the databases that came up with every row that the manifest counts. */
export const proofSchema = z.object({
  schema: z.literal(1),
  run: z.string(),
  at: when,
  by: z.string(),
  restored: z.array(z.string()),
  seconds: z.number(),
})

/** Why it did not come up. */
export const failureSchema = z.object({
  schema: z.literal(1),
  run: z.string(),
  at: when,
  by: z.string(),
  error: z.string(),
})

export type Stored = z.infer<typeof stored>
export type DatabaseBackup = z.infer<typeof database>
export type Manifest = z.infer<typeof manifestSchema>
export type Files = z.infer<typeof files>
export type Proof = z.infer<typeof proofSchema>
export type Failure = z.infer<typeof failureSchema>

/** Sorts by time; says which host; and no two are the same, so that no run can overwrite another's objects. */
export function newRunId(started: Date, host: string): string {
  return `${started.toISOString().replace(/[-:]|\.\d+/g, '')}-${host}-${randomBytes(3).toString('hex')}`
}

/** `prefix` is S3_PREFIX. */
export const runsPrefix = (prefix: string) => `${prefix}/runs/`
export const runKey = (prefix: string, run: string, name: string) => `${runsPrefix(prefix)}${run}/${name}`
export const resticPrefix = (prefix: string) => `${prefix}/restic`

export const parseFiles = (value: Files): Files => files.parse(value)

const hashOf = (content: object) => createHash('sha256').update(JSON.stringify(content)).digest('hex')

/** The manifest as it is stored, with a hash of all else in it: a flipped bit would restore other grants or settings. */
export function manifestText(manifest: Manifest): string {
  const content = manifestSchema.parse(manifest)
  return `${JSON.stringify({ ...content, sha256: hashOf(content) }, null, 1)}\n`
}

/** What was read is no manifest that this version knows, or not what was written. */
export class Damaged extends Stop {}

/**
 * Manifests of earlier versions have no hash.
 * @throws Damaged
 */
export function parseManifest(json: string): Manifest {
  try {
    const { sha256, ...content } = JSON.parse(json)
    if (sha256 !== undefined && sha256 !== hashOf(content)) throw new Error('its content is not what its hash says')
    return manifestSchema.parse(content)
  } catch (error) {
    const why = error instanceof z.ZodError ? z.prettifyError(error) : messageOf(error)
    throw new Damaged(`The manifest is damaged: ${why.replace(/\s+/g, ' ')}`)
  }
}
