/**
 * The IPv6 address, or range, that goes with an IPv4 one of the rehearsal: the same 32 bits at the end of the range kept
 * for documentation (RFC 3849), so that every machine has both and no second list of addresses is needed.
 */
export function ipv6(v4: string): string {
  const [address = '', length] = v4.split('/')
  const [a = 0, b = 0, c = 0, d = 0] = address.split('.').map(Number)
  const group = (high: number, low: number) => (high * 256 + low).toString(16)
  return `2001:db8::${group(a, b)}:${group(c, d)}${length === undefined ? '' : `/${Number(length) + 96}`}`
}
