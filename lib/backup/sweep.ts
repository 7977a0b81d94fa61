import { mkdirSync, rmSync } from 'node:fs'
import { messageOf } from '../errors.ts'
import { readCatalog } from './catalog.ts'
import { MANIFEST, runKey, runsPrefix } from './manifest.ts'
import type { ObjectStore } from './object-store.ts'
import { SPOOL } from './parts.ts'
import type { Service } from './service.ts'

/** What another server left: while one is rebuilt, two have the same bucket, and each has a lock of its own. */
const DEAD_AFTER = 48 * 3600_000

/** Nobody works on that run any more. @param ours runs that this server began and did not end: it holds their lock now */
export const isDead = (run: string, newest: Date, ours: string[], now: Date): boolean =>
  ours.includes(run) || now.getTime() - newest.getTime() > DEAD_AFTER

export const nowAt = async (store: ObjectStore): Promise<Date> => new Date(Date.now() + (await store.check()) * 1000)

/**
 * What killed runs left, here and in the store. Called under the lock, and the store is asked only now: a run that has
 * just written its manifest looked like a leftover before.
 * @returns of ours those that could not be removed
 */
export async function sweep({ log, store, signal }: Service, ours: string[]): Promise<string[]> {
  rmSync(SPOOL, { recursive: true, force: true })
  mkdirSync(SPOOL, { recursive: true, mode: 0o700 })
  const { S3_PREFIX } = store.settings
  const prefix = runsPrefix(S3_PREFIX)
  const now = await nowAt(store)
  const runOf = (key: string) => (key.startsWith(prefix) ? (key.slice(prefix.length).split('/')[0] ?? '') : '')
  try {
    // Also those of restic and of the log, which nobody else looks for.
    const aborted = await store.abortUploads(`${S3_PREFIX}/`, (key, begun) => isDead(runOf(key), begun, ours, now))
    if (aborted > 0) log.say(`  ${aborted} uploads that a killed run had left open were aborted`)
  } catch (error) {
    log.warn(`Uploads that were left open could not be aborted: ${messageOf(error)}`)
  }
  const left: string[] = []
  const { leftovers } = await readCatalog(store, { anyFailure: true })
  for (const { run, newest } of leftovers) {
    if (!isDead(run, newest, ours, now)) {
      log.say(`  ${run} has no manifest yet; it is left alone, since another server may be at work on it`)
      continue
    }
    if (await store.head(runKey(S3_PREFIX, run, MANIFEST))) continue
    log.say(`  ${run} never wrote its manifest; its objects are removed`)
    if (await store.remove(`${prefix}${run}/`, '', signal)) continue
    log.say('  … which this key may not do')
    if (ours.includes(run)) left.push(run)
  }
  return left
}
