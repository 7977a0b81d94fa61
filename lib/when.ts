import { EXIT, Stop } from './errors.ts'

const ZONE = 'Europe/Budapest'

/** A moment, or as far as the log in S3 goes. */
export type When = Date | 'newest'

/**
 * What --time says: `newest`, or what `parseTime` reads.
 * @throws Stop (exit 2) when it is neither
 */
export const parseWhen = (text: string, now = new Date()): When =>
  text === 'newest' ? text : parseTime('--time', text, now)

/**
 * @param flag which one says it
 * @param text a time of day of today, or a date with a time; without a zone it is that of Budapest
 * @throws Stop (exit 2) when it is none of these, or in the future
 */
export function parseTime(flag: string, text: string, now = new Date()): Date {
  const match = /^(?:(\d{4}-\d\d-\d\d)[T ])?(\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?)(Z|[+-]\d\d:?\d\d)?$/.exec(text.trim())
  const [, date = local(now).slice(0, 10), time = '', zone] = match ?? []
  const full = `${date}T${time.length === 5 ? `${time}:00` : time}`
  const when = zone ? new Date(`${full}${zone}`) : inZone(full)
  if (!match || Number.isNaN(when.getTime()))
    throw usage(`${flag} ${text} is not a time.`, [`Examples: ${flag} 14:05, ${flag} '2026-11-23 14:05:30'`])
  if (when > now) throw usage(`${flag} ${text} is in the future: here it is ${local(now)} in Budapest.`)
  return when
}

const usage = (message: string, next: string[] = []) => new Stop(message, next, EXIT.usage)

/** '2026-11-23 14:05:30', in Budapest. */
export const local = (time: Date) => time.toLocaleString('sv-SE', { timeZone: ZONE })

/** The moment at which clocks in Budapest show this; in the hour that comes twice, the second. */
function inZone(text: string): Date {
  const asUtc = new Date(`${text}Z`)
  const offset = (at: Date) =>
    new Date(`${local(at).replace(' ', 'T')}Z`).getTime() - Math.floor(at.getTime() / 1000) * 1000
  if (Number.isNaN(asUtc.getTime())) return asUtc
  const guess = new Date(asUtc.getTime() - offset(asUtc))
  return new Date(asUtc.getTime() - offset(guess))
}
