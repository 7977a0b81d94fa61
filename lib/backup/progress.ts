import { seconds } from '../log.ts'
import { gigabytes } from './catalog.ts'

/** How far a backup is. Sizes in bytes; what is expected comes from the backup before, or from the database's size. */
export type Progress = {
  part: string
  stored: number
  expected: number
  seconds: number
  allStored: number
  allExpected: number
  allSeconds: number
}

const WIDTH = 20

/** 'kgc 61.0 MB of 258.0 MB ███▌ 24 %, 41.2 MB/s, 4.8 s left; all 20 %, 6.1 s left' */
export function describeProgress(at: Progress): string {
  const rate = at.seconds > 0 ? at.stored / at.seconds : 0
  const share = ratio(at.stored, at.expected)
  const bar = '█'.repeat(Math.round(share * WIDTH)).padEnd(WIDTH, '░')
  const left = (done: number, all: number, took: number) =>
    done > 0 && all > done ? `, ${seconds((took / done) * (all - done))} left` : ''
  return (
    `${at.part} ${bar} ${gigabytes(at.stored)} of about ${gigabytes(at.expected)}, ${gigabytes(rate)}/s` +
    `${left(at.stored, at.expected, at.seconds)}; all ${Math.round(ratio(at.allStored, at.allExpected) * 100)} %` +
    left(at.allStored, at.allExpected, at.allSeconds)
  )
}

/** What was expected may be exceeded; the bar then waits at its end. */
const ratio = (done: number, all: number) => (all > 0 ? Math.min(1, done / all) : 0)

/** Follows the parts of one run. @param tell called at most once a second */
export function trackProgress(expected: Record<string, number>, tell: (progress: Progress) => void) {
  const began = Date.now()
  const done: Record<string, number> = {}
  const starts: Record<string, number> = {}
  let told = 0
  const sum = (values: Record<string, number>) => Object.values(values).reduce((all, one) => all + one, 0)
  return (part: string, stored: number) => {
    const now = Date.now()
    starts[part] ??= now
    done[part] = stored
    if (now - told < 1000) return
    told = now
    tell({
      ...{ part, stored, expected: expected[part] ?? stored, seconds: (now - starts[part]) / 1000 },
      ...{ allStored: sum(done), allExpected: Math.max(sum(expected), sum(done)), allSeconds: (now - began) / 1000 },
    })
  }
}
