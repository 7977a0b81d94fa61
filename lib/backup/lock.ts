import { spawn } from 'node:child_process'
import { chmodSync, closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { EXIT, Stop } from '../errors.ts'
import { EXCHANGE, HELD_BY_ANOTHER, REBUILD } from '../layout.ts'
import { connectTo } from './databases.ts'

/** On the server, this is state/backup in /opt/kgc; restore and migrations take the same lock there. */
export const BACKUP_STATE = '/var/lib/backup'
/** Where the server's own folder is mounted in the container. */
export const SERVER_FOLDER = '/data/server'
const LOCK = `${BACKUP_STATE}/lock`
const HOLDER = `${BACKUP_STATE}/holder`
/** 'kgc' in ASCII: the same lock for who reaches the database, but not this folder. */
const ADVISORY_KEY = 0x6b6763

/**
 * Takes the lock of all backups: a file's, held by a process that ends with this one, and one in the database, held by a session.
 * @returns a function that gives both back
 * @throws Stop (exit 3) when another run holds either; Stop when a restore is half done
 */
export async function takeBackupLock(run: string): Promise<() => Promise<void>> {
  // It would be one of half a server, and the newest.
  if (existsSync(`${SERVER_FOLDER}/${REBUILD}`))
    throw heldBy('the rebuild of this server from a backup, which `npx tsx scripts/restore.ts --to-blank` completes')
  // Whoever deploys takes it for a migration, and reads who holds it; cron's runs have a umask that would shut that user out.
  for (const file of [LOCK, HOLDER]) {
    closeSync(openSync(file, 'a'))
    chmodSync(file, 0o644)
  }
  const holder = spawn('flock', ['-n', '-E', String(HELD_BY_ANOTHER), LOCK, 'sh', '-c', 'echo held; cat'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const ended = new Promise<number | null>((resolve) => holder.on('close', resolve))
  const taken = new Promise<true>((resolve) => holder.stdout.once('data', () => resolve(true)))
  const outcome = await Promise.race([taken, ended])
  if (outcome === HELD_BY_ANOTHER) throw heldBy(readHolder())
  if (outcome !== true) throw new Stop(`${LOCK} could not be locked: flock ended with ${outcome}.`)
  const release = async () => {
    holder.stdin.end()
    await ended
  }
  if (existsSync(`${SERVER_FOLDER}/${EXCHANGE}`)) {
    await release()
    // Exit 1, which is told: one that was cut off waits for somebody to complete it.
    throw new Stop(
      'A restore is exchanging data, or was cut off while it did: a backup would be of one half and the other.',
      ['The next restore or undo completes one that was cut off: npx tsx scripts/restore.ts --status'],
    )
  }
  const session = await connectTo('postgres').catch(async (error) => {
    await release()
    throw error
  })
  const releaseBoth = async () => {
    await session.end().catch(() => {})
    await release()
  }
  try {
    const { rows } = await session.query('SELECT pg_try_advisory_lock($1) AS taken', [ADVISORY_KEY])
    if (!rows[0].taken) throw heldBy('a run elsewhere, which holds the lock in the database')
    writeFileSync(HOLDER, `${run}, since ${new Date().toISOString()}\n`)
  } catch (error) {
    // Also on a full disk: the process that holds the lock would keep this one alive for ever.
    await releaseBoth()
    throw error
  }
  return releaseBoth
}

const heldBy = (who: string) =>
  new Stop(
    `Another backup, a restore or a migration is running: ${who}.`,
    ['Wait for it; a lock whose holder died is free at once.'],
    EXIT.locked,
  )

function readHolder(): string {
  try {
    return readFileSync(HOLDER, 'utf8').trim() || 'one that has just begun'
  } catch {
    return 'one that has just begun'
  }
}
