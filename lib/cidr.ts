import { isIP } from 'node:net'

export type Cidr = { family: 4 | 6 /** As iptables reads it. */; text: string; first: bigint; prefix: number }

const BITS = { 4: 32, 6: 128 } as const

/**
 * Reads one address or range, strictly: iptables itself would look a name up and would take 0.0.0.0/0 and host bits.
 * @throws Error that says what is wrong, as the rest of a sentence and without the text itself
 */
export function parseCidr(text: string): Cidr {
  const [, address = '', length] = /^([0-9a-fA-F.:]+)(?:\/(\d{1,3}))?$/.exec(text) ?? []
  const family = isIP(address)
  if (family !== 4 && family !== 6) throw new Error('it is not an IP address or a range of them')
  if (family === 6 && address.includes('.')) throw new Error('it is IPv6 with an IPv4 address inside')
  const prefix = length === undefined ? BITS[family] : Number(length)
  if (prefix > BITS[family] || (length !== undefined && length !== String(prefix)))
    throw new Error(`its length is not one of 0 to ${BITS[family]}`)
  const first = numberOf(address, family)
  if (first & ((1n << BigInt(BITS[family] - prefix)) - 1n)) throw new Error(`it has bits set beyond its /${prefix}`)
  return { family, text: `${address.toLowerCase()}/${prefix}`, first, prefix }
}

/** Reads a comma list. A mistake in it is named by its place, since a configuration's values are not printed. */
export function parseCidrs(text: string, widest?: { 4: number; 6: number }): Cidr[] {
  return text.split(',').map((entry, index) => {
    try {
      const cidr = parseCidr(entry.trim())
      if (widest && cidr.prefix < widest[cidr.family])
        throw new Error(`it is wider than /${widest[cidr.family]}, so it names more than a few machines`)
      return cidr
    } catch (error) {
      throw new Error(`is wrong in entry ${index + 1}: ${(error as Error).message}`)
    }
  })
}

export const contains = (outer: Cidr, inner: Cidr): boolean =>
  outer.family === inner.family &&
  outer.prefix <= inner.prefix &&
  outer.first >> BigInt(BITS[outer.family] - outer.prefix) === inner.first >> BigInt(BITS[outer.family] - outer.prefix)

export const overlaps = (a: Cidr, b: Cidr): boolean => contains(a, b) || contains(b, a)

/** Whether an address, as sshd writes it, lies in one of the ranges. */
export const isInside = (address: string, ranges: Cidr[]): boolean => {
  const asked = parseCidr(address.replace(/^::ffff:(?=\d+\.)/, ''))
  return ranges.some((range) => contains(range, asked))
}

function numberOf(address: string, family: 4 | 6): bigint {
  if (family === 4) return address.split('.').reduce((sum, part) => (sum << 8n) + BigInt(part), 0n)
  const [left = [], right = []] = address.split('::').map((half) => half.split(':').filter(Boolean))
  const zeros = Array<string>(8 - left.length - right.length).fill('0')
  return [...left, ...zeros, ...right].reduce((sum, part) => (sum << 16n) + BigInt(`0x${part}`), 0n)
}
