import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { MANIFEST, parseManifest, proofSchema, runKey, VERIFIED } from '../../../lib/backup/manifest.ts'
import { output } from '../../../lib/backup/pipeline.ts'
import { BACKUP_SERVICE } from '../../../lib/layout.ts'
import { createLog, seconds } from '../../../lib/log.ts'
import { withDownloads } from '../../../lib/restore/fetch.ts'
import { openEncrypted, readIdentities } from '../../../lib/restore/identity.ts'
import { fill, psql, spool, withWorkshop } from '../../../lib/restore/server.ts'
import { createBeside } from '../../../lib/restore/sql.ts'
import { type Command, sh } from '../../../lib/shell.ts'
import { describeLoad, loadOf, removeLoad, store } from '../backup.ts'
import { onServer, rehearsal, runScript, said, serverRead } from '../harness.ts'
import { LARGE } from '../restore-data.ts'
import { AGE_IDENTITY, s3Settings } from '../s3.ts'

const test = suite('what backup and restore take')
const SOAK = process.env.SOAK === '1'
const MIB = 1024 ** 2
/** Of a stream; the large one is eight times the small one. */
const SMALL = (SOAK ? 1024 : 64) * MIB
/** Buffers come and go with the garbage collector; what grows with the stream would be many times this. */
const NOISE = 100 * MIB

/** @returns what the work gave, and the seconds that it took */
async function timed<T>(work: () => Promise<T>): Promise<[T, number]> {
  const started = performance.now()
  return [await work(), (performance.now() - started) / 1000]
}

/** Stores a stream that does not compress and removes it again. @returns the most memory that this process took meanwhile, in bytes */
async function peakOf(bytes: number): Promise<number> {
  const open = await store()
  const key = `test/stream-${Date.now()}`
  let peak = 0
  const watch = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage().rss)
  }, 20)
  try {
    const source = output(sh`head -c ${bytes} /dev/urandom`, {
      what: 'The source',
      signal: AbortSignal.timeout(900_000),
    })
    const { bytes: stored } = await open.put(key, source)
    assert.is(stored, bytes)
    return peak
  } finally {
    clearInterval(watch)
    await open.remove(key, key)
    open.close()
  }
}

test.before(() => rehearsal())
if (SOAK) test.after(removeLoad)

test('a stream eight times as long takes no more memory', async () => {
  const small = await peakOf(SMALL)
  const large = await peakOf(8 * SMALL)
  console.log(
    `  ${SMALL / MIB} MiB: ${Math.round(small / MIB)} MiB of memory; ${(8 * SMALL) / MIB} MiB: ${Math.round(large / MIB)} MiB`,
  )
  assert.ok(large < small + NOISE, `${large} after ${small} bytes`)
})

const inBackupService = (command: Command, timeout = 1800) =>
  onServer((host) => host.read(sh`docker exec ${BACKUP_SERVICE} bash -o pipefail -c ${command.shell}`, { timeout }))
const sql = (text: string) => onServer((host) => host.read(psql(text, 'kgc'), { timeout: 1800 }))
const DROP = 'DROP TABLE IF EXISTS large_rows, large_documents, large_bytes'
const LOAD_SECONDS = 30
const SIDE = 'kgc_restore_20260101t000000'

/** Memory of the backup-service while the work runs, as Docker counts it, in MiB. */
async function memoryDuring<T>(work: () => Promise<T>): Promise<[T, number]> {
  let peak = 0
  let isDone = false
  const watch = (async () => {
    while (!isDone) {
      const shown = await serverRead(sh`docker stats --no-stream --format ${'{{.MemUsage}}'} ${BACKUP_SERVICE}`)
      const [, amount = '0', unit] = /^([\d.]+)(MiB|GiB)/.exec(shown) ?? []
      peak = Math.max(peak, Number(amount) * (unit === 'GiB' ? 1024 : 1))
    }
  })()
  const result = await work().finally(() => {
    isDone = true
  })
  await watch
  return [result, peak]
}

/** As an operator restores, from the download to the smoke tests, against pg_restore alone from a file that is there. */
async function wholeRestore(theirs: Record<string, number>, run: string): Promise<void> {
  const restored = await runScript('restore', ['--db', 'kgc', '--run', run, '--confirm', 'kgc'])
  assert.is(restored.code, 0, said(restored))
  console.log(`${restored.stderr}${restored.stdout}  the whole restore: ${restored.seconds.toFixed(1)} s`)
  for (const [what, took] of Object.entries(theirs))
    console.log(`  the whole restore takes ${(restored.seconds / took).toFixed(2)} of the time of ${what}`)
  const old = /^kgc_old_\w+/m.exec((await runScript('restore', ['--status'])).stdout)?.[0] ?? ''
  assert.is((await runScript('restore', ['--drop', old, '--confirm', old])).code, 0)
}

// The work is the same each time, so what happens beside it is the same for all: twice around.
if (SOAK)
  test('with 1.6 GB: backup and restore against what others do', async () => {
    await sql(DROP)
    await sql(LARGE)
    const size = Number(await sql("SELECT pg_database_size('kgc')"))
    console.log(`  database: ${(size / 1e9).toFixed(2)} GB`)
    assert.ok(size >= 1.5e9)
    const identities = readIdentities(AGE_IDENTITY)
    const open = await store()
    const prefix = s3Settings().S3_PREFIX
    try {
      for (const round of [1, 2]) {
        console.log(`  round ${round}`)
        const others: Record<string, Command> = {
          'pg_dump -Fc': sh`pg_dump -Fc kgc > /dev/null`,
          'pg_dump -Fc -Z0 | zstd -3': sh`pg_dump -Fc -Z0 kgc | zstd -3 -q > /dev/null`,
        }
        const theirs: Record<string, number> = {}
        for (const [what, command] of Object.entries(others)) {
          const [, took] = await timed(() => inBackupService(command))
          theirs[what] = took
          console.log(`  ${what} to /dev/null: ${seconds(took)}`)
        }
        const quiet = await loadOf(LOAD_SECONDS)
        const [busy] = await Promise.all([loadOf(LOAD_SECONDS), inBackupService(sh`backup`)])
        console.log(`  other transactions: ${describeLoad(quiet)}; during a backup ${describeLoad(busy)}`)
        const [[, memory], whole] = await timed(() => memoryDuring(() => inBackupService(sh`backup --verify`)))
        const runs = (await open.list(`${prefix}/runs/`)).filter(({ key }) => key.endsWith(`/${MANIFEST}`))
        const newest = runs.sort((a, b) => +b.modified - +a.modified)[0]
        const manifest = parseManifest((await open.getText(newest?.key ?? '')) ?? '')
        const kgc = manifest.databases.find(({ name }) => name === 'kgc')
        assert.ok(kgc && newest?.key === runKey(prefix, manifest.run, MANIFEST))
        const proof = proofSchema.parse(
          JSON.parse((await open.getText(runKey(prefix, manifest.run, VERIFIED))) ?? '{}'),
        )
        console.log(
          `  the pipeline for kgc, encrypted and stored: ${kgc.seconds.toFixed(1)} s, ${Math.round(kgc.storedBytes / 1e6)} MB; reading all back: ${manifest.verified.seconds.toFixed(1)} s; the restore test of all databases: ${seconds(proof.seconds)}; the whole backup without that: ${seconds(whole - proof.seconds)}; memory ${Math.round(memory)} MiB`,
        )
        for (const [what, took] of Object.entries(theirs))
          console.log(`  the pipeline takes ${(kgc.seconds / took).toFixed(2)} of the time of ${what}`)
        const restores: number[] = []
        await withDownloads(createLog(), open, [kgc], (files) =>
          onServer(async (host) => {
            for (const jobs of [1, 2])
              await withWorkshop(host, async () => {
                await spool(host, 'kgc', await openEncrypted(files.kgc ?? '', identities), () => {})
                await host.read(psql(createBeside(SIDE, kgc, 'figures')))
                const [, took] = await timed(() => fill(host, SIDE, 'kgc', jobs))
                restores.push(took)
                console.log(`  pg_restore -j ${jobs} from a file on the server: ${seconds(took)}`)
                await host.read(psql(`DROP DATABASE ${SIDE} WITH (FORCE)`))
              })
          }),
        )
        const [serial = 0, parallel = 0] = restores
        console.log(`  two workers take ${(parallel / serial).toFixed(2)} of the time of one`)
        await wholeRestore({ 'pg_restore -j 1': serial, 'pg_restore -j 2': parallel }, manifest.run)
      }
    } finally {
      open.close()
      await sql(DROP)
    }
  })

test.run()
