import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'
import { type Cidr, contains, overlaps, parseCidr } from '../cidr.ts'
import { messageOf, Stop } from '../errors.ts'
import type { AccessSettings } from '../settings.ts'

/** Cloudflare publishes 15 and 7 ranges, and changed them three times in five years: what is far from that is not its list. */
const COUNT = { 4: [10, 40], 6: [4, 20] } as const
const PREFIX = { 4: [11, 24], 6: [28, 48] } as const
const KEPT = 0.7

const PUBLIC_V6 = parseCidr('2000::/3')
/** Ranges that no public server has (IANA's special-purpose registries). */
const SPECIAL = [
  ...['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.0.0.0/24'],
  ...['192.0.2.0/24', '192.168.0.0/16', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/3'],
  ...['2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20'],
].map(parseCidr)

/**
 * Reads Cloudflare's ranges from nginx's own list of them, so that there is one list.
 * @throws Stop that names the line that is anything else
 */
export function readRanges(text: string, file: string): Cidr[] {
  return text.split('\n').flatMap((line, index) => {
    if (/^\s*(#|$)/.test(line)) return []
    const [, range] = /^\s*set_real_ip_from\s+(\S+);\s*$/.exec(line) ?? []
    try {
      if (!range) throw new Error('it is not `set_real_ip_from RANGE;`')
      return [parseCidr(range)]
    } catch (error) {
      throw refusal(`${file}, line ${index + 1}: ${messageOf(error)}`)
    }
  })
}

/**
 * Refuses a list that cannot be Cloudflare's.
 * @param last the ranges that are in use, if any; most of them must still be there, and few may be new, unless forced
 * @throws Stop with every doubt at once
 */
export function checkRanges(ranges: Cidr[], last: Cidr[], force: boolean): void {
  const doubts: string[] = []
  for (const family of [4, 6] as const) {
    const count = ranges.filter((range) => range.family === family).length
    const [least, most] = COUNT[family]
    if (count < least || count > most) doubts.push(`${count} IPv${family} ranges, expected ${least} to ${most}`)
  }
  for (const range of ranges) {
    const [widest, narrowest] = PREFIX[range.family]
    if (range.prefix < widest || range.prefix > narrowest)
      doubts.push(`${range.text} is not between /${widest} and /${narrowest}`)
    if (SPECIAL.some((special) => overlaps(special, range)) || (range.family === 6 && !contains(PUBLIC_V6, range)))
      doubts.push(`${range.text} is not public`)
  }
  const kept = last.filter(({ text }) => ranges.some((range) => range.text === text)).length
  if (!force && kept < KEPT * last.length)
    doubts.push(`only ${kept} of the ${last.length} ranges in use are in it; --force takes it all the same`)
  if (!force && last.length > 0 && kept < KEPT * ranges.length)
    doubts.push(`only ${kept} of its ${ranges.length} ranges are in use; --force takes it all the same`)
  if (doubts.length > 0) throw refusal(doubts.join('\n  '))
}

const RANGES_FILE = fileURLToPath(new URL('../../nginx/cloudflare.conf', import.meta.url))
const FETCH_MS = 10_000

/** https://developers.cloudflare.com/api/resources/ips/methods/list/ */
const ANSWER = z.object({
  success: z.literal(true),
  result: z.object({ ipv4_cidrs: z.array(z.string()), ipv6_cidrs: z.array(z.string()) }),
})

/**
 * Asks Cloudflare for its ranges.
 * @throws Error that says why what came cannot be the list; `checkRanges` judges what is in it
 */
export async function fetchRanges(url: string): Promise<Cidr[]> {
  const answer = await fetch(url, { redirect: 'error', signal: AbortSignal.timeout(FETCH_MS) })
  if (answer.status !== 200) throw new Error(`HTTP ${answer.status}`)
  const parsed = ANSWER.safeParse(await answer.json().catch(() => undefined))
  if (!parsed.success) throw new Error('the answer is not the JSON that Cloudflare documents')
  const { ipv4_cidrs, ipv6_cidrs } = parsed.data.result
  return [...ipv4_cidrs, ...ipv6_cidrs].map((range) => {
    try {
      return parseCidr(range)
    } catch (error) {
      throw new Error(`${JSON.stringify(range)}: ${messageOf(error)}`)
    }
  })
}

/**
 * The ranges to apply: those of the configured file, else those that Cloudflare publishes now, else those that the server has,
 * else those of this repository.
 * @param last the ranges that the server has, if any
 * @param warn told when it is not the list that was asked for
 * @throws Stop when the configured file cannot be Cloudflare's list
 */
export async function currentRanges(
  settings: Pick<AccessSettings, 'CLOUDFLARE_RANGES_FILE' | 'CLOUDFLARE_IPS_URL'>,
  last: Cidr[],
  force: boolean,
  warn: (text: string) => void,
): Promise<Cidr[]> {
  const file = settings.CLOUDFLARE_RANGES_FILE
  if (file) {
    const ranges = readRanges(readFileSync(file, 'utf8'), file)
    checkRanges(ranges, last, force)
    return ranges
  }
  try {
    const ranges = await fetchRanges(settings.CLOUDFLARE_IPS_URL)
    checkRanges(ranges, last, force)
    return ranges
  } catch (error) {
    const source = last.length > 0 ? 'the server' : 'this repository (nginx/cloudflare.conf)'
    warn(`Cloudflare could not be asked for its ranges; those of ${source} are used.\n${messageOf(error)}`)
    return last.length > 0 ? last : readRanges(readFileSync(RANGES_FILE, 'utf8'), RANGES_FILE)
  }
}

const refusal = (doubt: string) =>
  new Stop(`The list of Cloudflare's ranges is refused; the firewall was not changed:\n  ${doubt}`, [
    'Compare it with https://www.cloudflare.com/ips/.',
  ])
