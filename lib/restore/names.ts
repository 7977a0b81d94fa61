/** Databases that a restore makes beside the one that serves, and leaves for a way back. */
export type Kind = 'restore' | 'old' | 'copy'
/** The volumes' files go by this name where databases have theirs. */
export const FILES = 'files'
export type Beside = { name: string; database: string; kind: Kind; stamp: string }

/** UTC, to the second, as it can stand in the name of a database without quotes: 20261123t020000 */
export const stampOf = (time: Date) => time.toISOString().slice(0, 19).replace(/[-:]/g, '').toLowerCase()

/** 2026-11-23 02:00:00 */
export const readStamp = (stamp: string) =>
  stamp.replace(/^(\d{4})(\d\d)(\d\d)t(\d\d)(\d\d)(\d\d)$/, '$1-$2-$3 $4:$5:$6')

/**
 * `restore`: being filled, or left behind by a run that died. `old`: what served before a swap. `copy`: to copy from;
 * restored with --keep-side, or exchanged back after it had served.
 */
export const besideName = (database: string, kind: Kind, stamp: string) => `${database}_${kind}_${stamp}`

/** The databases among the names that a restore made, the newest first. */
export function findBeside(names: string[]): Beside[] {
  return names
    .flatMap((name): Beside[] => {
      const [, database, kind, stamp] = /^(\w+)_(restore|old|copy)_(\d{8}t\d{6})$/.exec(name) ?? []
      return database && kind && stamp ? [{ name, database, kind: kind as Kind, stamp }] : []
    })
    .sort((a, b) => b.stamp.localeCompare(a.stamp) || a.name.localeCompare(b.name))
}
