import { hostname } from 'node:os'
import { messageOf } from '../errors.ts'
import { assertRoom, restoreTest } from './drill.ts'
import { Damaged, type Failure, type Manifest, NOT_RESTORED, type Proof, VERIFIED } from './manifest.ts'
import type { Service } from './service.ts'
import { type BackupRun, putText } from './store.ts'

/**
 * Restores the backup just made into a throwaway server, and records beside its manifest that it came up whole, or why not.
 * @throws what the restore failed with
 */
export async function proveRestore({ log, signal }: Service, run: BackupRun, manifest: Manifest): Promise<void> {
  const record = (name: string, outcome: Pick<Proof, 'restored' | 'seconds'> | Pick<Failure, 'error'>) => {
    const about = { schema: 1, run: run.id, at: new Date().toISOString(), by: hostname(), ...outcome }
    return putText(run, name, `${JSON.stringify(about, null, 1)}\n`)
  }
  async function test() {
    const began = performance.now()
    assertRoom(manifest)
    const restored = await restoreTest(run, manifest).catch(async (error) => {
      // What this server lacks, or does not wait for, says nothing about the backup.
      if (error instanceof Damaged && !signal.aborted)
        await record(NOT_RESTORED, { error: log.clean(messageOf(error)) })
      throw error
    })
    await record(VERIFIED, { restored, seconds: (performance.now() - began) / 1000 })
  }
  await log.step('Restore test', test, 'whole')
}
