import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { runsPrefix } from '../../../lib/backup/manifest.ts'
import { BACKUP_SERVICE } from '../../../lib/layout.ts'
import { sh } from '../../../lib/shell.ts'
import { catalog, changeState, describeLoad, loadOf, readState, removeLoad, startBackup, store } from '../backup.ts'
import { onServer, rehearsal, said, serverRead } from '../harness.ts'
import { s3Settings } from '../s3.ts'

const test = suite('what a backup does to the server meanwhile')
const SOAK = process.env.SOAK === '1'
const MIB = 1024 ** 2
const GIB = 1024 ** 3
/** Buffers come and go with the garbage collector; what grows with the stream would be many times this. */
const NOISE = 150 * MIB
const LONGEST_SECONDS = 3 * 3600

test.before(() => rehearsal())
test.after(removeLoad)

test('the databases answer while it runs, and no transaction fails', async () => {
  const seconds = SOAK ? 30 : 10
  const quiet = await loadOf(seconds)
  const [busy, run] = await Promise.all([loadOf(seconds), startBackup()])
  assert.is(run.code, 0, said({ ...run, seconds: 0 }))
  console.log(`  without a backup ${describeLoad(quiet)}; with one ${describeLoad(busy)}`)
  for (const load of [quiet, busy]) {
    assert.is(load.failed, 0)
    assert.ok(load.transactions > seconds * 10, `${load.transactions} transactions`)
  }
  // One waits behind the other's disk and processor, but not for a lock, which would take as long as the backup.
  assert.ok(busy.p99 < 2000, `${busy.p99} ms`)
})

/** Where programs may be run, and the backup leaves alone what it does not know. */
const FAKE = '/var/lib/backup/figures'
/** The most memory of the backup's container, in bytes, without the kernel's copies of files. */
const MOST_MEMORY = `until pgrep -f '[/]app/backup.mjs' > /dev/null; do sleep 0.1; done
most=0; while pgrep -f '[/]app/backup.mjs' > /dev/null; do
  now=$(cat /sys/fs/cgroup/memory.stat /sys/fs/cgroup/memory/memory.stat 2> /dev/null | awk '$1 == "anon" || $1 == "total_rss" { print $2; exit }')
  most=$((\${now:-0} > most ? \${now:-0} : most)); sleep 0.2
done; echo $most`

/** A whole backup, in which another program plays the dump of the roles. @returns the most memory meanwhile, in bytes */
async function peakWith(source: string): Promise<number> {
  const program = `#!/bin/sh\n${source}\necho\necho PostgreSQL database cluster dump complete\n`
  const inService = (command: string, input = '') =>
    onServer((host) =>
      host.read(sh`docker exec -i ${BACKUP_SERVICE} bash -c ${command}`, { input, timeout: LONGEST_SECONDS }),
    )
  await inService(`mkdir -p ${FAKE} && cat > ${FAKE}/pg_dumpall && chmod 755 ${FAKE}/pg_dumpall`, program)
  const before = await readState()
  // A restore test would run what the program prints.
  await changeState({ lastRestored: new Date().toISOString() })
  const path = await serverRead(sh`docker exec ${BACKUP_SERVICE} printenv PATH`)
  try {
    const watched = inService(MOST_MEMORY)
    await inService(`PATH=${FAKE}:${path.trim()} backup`)
    return Number(await watched)
  } finally {
    await changeState(before)
    await inService(`rm -rf ${FAKE}`)
    await removeNewest()
  }
}

/** Its roles are none. */
async function removeNewest(): Promise<void> {
  const run = (await catalog()).runs[0]?.manifest
  const open = await store()
  // What is smaller than a part belongs to a backup that failed before the roles.
  if (run?.globals && run.globals.rawBytes > 100 * MIB)
    await open.remove(`${runsPrefix(s3Settings().S3_PREFIX)}${run.run}/`, '')
  open.close()
}

if (SOAK)
  test('the whole pipeline takes no more memory for 8 GiB stored, or 50 GiB read, than for 1 GiB', async () => {
    const small = await peakWith(`head -c ${GIB} /dev/urandom`)
    const stored = await peakWith(`head -c ${8 * GIB} /dev/urandom`)
    const read = await peakWith(`yes 'SET statement_timeout = 0;' | head -c ${50 * GIB}`)
    const inMib = (bytes: number) => `${Math.round(bytes / MIB)} MiB`
    console.log(`  memory: 1 GiB ${inMib(small)}; 8 GiB ${inMib(stored)}; 50 GiB that compress ${inMib(read)}`)
    assert.ok(small > 0)
    for (const peak of [stored, read]) assert.ok(peak < small + NOISE, `${peak} after ${small} bytes`)
  })

test.run()
