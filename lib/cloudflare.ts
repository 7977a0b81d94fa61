import { type Cidr, contains, overlaps, parseCidr } from './cidr.ts'
import { messageOf, Stop } from './errors.ts'

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
 * @param last the ranges that are in use; most of them must still be there, unless forced
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
  if (doubts.length > 0) throw refusal(doubts.join('\n  '))
}

const refusal = (doubt: string) =>
  new Stop(`The list of Cloudflare's ranges is refused; the firewall was not changed:\n  ${doubt}`, [
    'Compare it with https://www.cloudflare.com/ips/.',
  ])
