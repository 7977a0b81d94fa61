import { type Cidr, parseCidr } from '../cidr.ts'

export const FAMILIES = [4, 6] as const
export type Family = (typeof FAMILIES)[number]

export type Access = {
  sshPort: number
  /** Who may use SSH. */
  admins: Cidr[]
  /** Interfaces of a private network, over which anybody may use SSH. */
  interfaces: string[]
  /** Who may use HTTPS: Cloudflare, and who else past it. */
  cloudflare: Cidr[]
  extra: Cidr[]
  httpFrom: 'any' | 'cloudflare'
}

/** nginx-proxy's address in compose/kgc.yaml. */
const FRONT_DOOR = '172.22.0.10'
/** Marks the rules in Docker's chain as ours, so that another's are seen. */
const OURS = '-m comment --comment kgc'

/**
 * The rules of one family as text for `iptables-restore --noflush`: declaring a chain empties it and fills it anew within
 * one transaction. The jumps into the chains are added by server/kgc-firewall, where they are missing.
 */
export function firewallRules(access: Access, family: Family): string {
  return [
    '*filter',
    ':INPUT DROP [0:0]',
    ':KGC-IN - [0:0]',
    ':KGC-CF - [0:0]',
    ':DOCKER-USER - [0:0]',
    ...httpsSources(access, family, 'KGC-CF'),
    ...toHost(access, family),
    ...toContainers(access, 'DOCKER-USER', 'KGC-CF'),
    'COMMIT',
    '*mangle',
    ':KGC-FORWARD - [0:0]',
    ':KGC-FORWARD-CF - [0:0]',
    ...httpsSources(access, family, 'KGC-FORWARD-CF'),
    ...toContainers(access, 'KGC-FORWARD', 'KGC-FORWARD-CF'),
    'COMMIT',
    ...(family === 4 ? frontDoor : []),
    '',
  ].join('\n')
}

const httpsSources = ({ cloudflare, extra }: Access, family: Family, chain: string): string[] => [
  ...of(cloudflare, family).map(({ text }) => `-A ${chain} -s ${text} -j RETURN`),
  // Marked, since nginx does not believe them about a visitor's address, and a refresh of Cloudflare's ranges leaves them.
  ...of(extra, family).map(({ text }) => `-A ${chain} -s ${text} -m comment --comment extra -j RETURN`),
  `-A ${chain} -j DROP`,
]

/** What is meant for the server itself; with a userland proxy, also what comes over IPv6 to a published port. */
function toHost({ sshPort, admins, interfaces, httpFrom }: Access, family: Family): string[] {
  return [
    '-i lo -j ACCEPT',
    '-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
    ...(family === 4 ? ICMP : LOCAL_IPV6),
    '-m conntrack --ctstate INVALID -j DROP',
    ...interfaces.map((name) => `-i ${name} -p tcp --dport ${sshPort} -j ACCEPT`),
    ...of(admins, family).map(({ text }) => `-s ${text} -p tcp --dport ${sshPort} -j ACCEPT`),
    '-p tcp --dport 443 -j KGC-CF',
    '-p tcp --dport 443 -j ACCEPT',
    ...(httpFrom === 'cloudflare' ? ['-p tcp --dport 80 -j KGC-CF'] : []),
    '-p tcp --dport 80 -j ACCEPT',
    // Also the policy; written out, so that it holds when somebody resets the policy.
    '-j DROP',
  ].map((rule) => `-A KGC-IN ${rule}`)
}

/** Errors about a connection are RELATED to it. */
const ICMP = ['-p icmp --icmp-type echo-request -m limit --limit 10/s -j ACCEPT']
/**
 * RFC 4890, 4.4.1: errors; finding one's neighbors, which without an answer ends all of IPv6; and groups, without which switches
 * stop passing on what neighbors ask. And answers to DHCPv6, which come from another address than the question went to.
 */
const LOCAL_IPV6 = [
  ...[1, 2, 3, 4].map((type) => `-p icmpv6 --icmpv6-type ${type} -j ACCEPT`),
  ...[133, 134, 135, 136, 141, 142, 148, 149].map(
    (type) => `-p icmpv6 --icmpv6-type ${type} -m hl --hl-eq 255 -j ACCEPT`,
  ),
  ...[130, 131, 132, 143, 151, 152, 153].map((type) => `-p icmpv6 --icmpv6-type ${type} -m hl --hl-eq 1 -j ACCEPT`),
  '-p icmpv6 --icmpv6-type echo-request -m limit --limit 10/s -j ACCEPT',
  '-s fe80::/10 -p udp --sport 547 --dport 546 -j ACCEPT',
]

/**
 * What is forwarded to containers, which is what Docker publishes: it never passes INPUT. The trusted side is named, not
 * the outside, whose interface has another name on every server. `--ctstate DNAT`, else a packet routed straight to a
 * container's 443 would pass. RETURN, so that Docker's own rules still run.
 *
 * They stand twice. DOCKER-USER is where Docker documents them; but while dockerd 29 starts, its own chain is before that one: for 8 s
 * with the whole stack, in which 14,372 of a stranger's 14,399 connections came in. The table mangle is asked before Docker's chains.
 */
function toContainers({ httpFrom }: Access, chain: string, sources: string): string[] {
  const published = (port: number) =>
    `-p tcp -m conntrack --ctstate DNAT --ctorigdstport ${port} --ctdir ORIGINAL ${OURS}`
  return [
    `-m conntrack --ctstate RELATED,ESTABLISHED ${OURS} -j RETURN`,
    `-i docker0 ${OURS} -j RETURN`,
    `-i br-+ ${OURS} -j RETURN`,
    `${published(443)} -j ${sources}`,
    `${published(443)} -j RETURN`,
    ...(httpFrom === 'cloudflare' ? [`${published(80)} -j ${sources}`] : []),
    `${published(80)} -j RETURN`,
    `${OURS} -j DROP`,
  ].map((rule) => `-A ${chain} ${rule}`)
}

/**
 * A restart of dockerd takes its own port rules away for 0.3 s (measured), and new connections are refused meanwhile.
 * These stay: packets find nginx at its fixed address whatever dockerd does.
 */
const frontDoor = [
  '*nat',
  ':KGC-FRONT-DOOR - [0:0]',
  ...[80, 443].map((port) => `-A KGC-FRONT-DOOR -p tcp --dport ${port} -j DNAT --to-destination ${FRONT_DOOR}:${port}`),
  'COMMIT',
]

/** The ranges that a set of rules lets in on 443 as Cloudflare's. */
export const httpsRanges = (rules: string): Cidr[] =>
  [...rules.matchAll(/^-A KGC-CF -s (\S+) -j RETURN$/gm)].map(([, range]) => parseCidr(range ?? ''))

/** Lines that only one of two texts has, marked like those of a patch. */
export function difference(active: string, wanted: string): string[] {
  const [before, after] = [active, wanted].map((text) => text.split('\n').filter(Boolean))
  return [
    ...(before ?? []).filter((line) => !after?.includes(line)).map((line) => `- ${line}`),
    ...(after ?? []).filter((line) => !before?.includes(line)).map((line) => `+ ${line}`),
  ]
}

const of = (ranges: Cidr[], family: Family) => ranges.filter((range) => range.family === family)
