import { randomUUID } from 'node:crypto'
import { TELLING_FILES, webhookFile } from '../alert.ts'
import { type Cidr, isInside } from '../cidr.ts'
import { messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { valuesIn } from '../lines.ts'
import { putFile, type ServerFile, serverText } from '../put-file.ts'
import { putFiles } from '../server-files.ts'
import { script, sh } from '../shell.ts'
import { ORIGIN_FILES } from './origin-pull.ts'
import { difference, FAMILIES, type Family } from './rules.ts'

export const FIREWALL = '/usr/local/sbin/kgc-firewall'
export const RANGES_URL = '/etc/kgc/firewall/cloudflare-url'
/** What nginx is to have; server/kgc-cloudflare gives it. */
export const NGINX_FILES = '/etc/kgc/nginx'

export type Found = {
  /** The address that this run comes from, as the server sees it, and the interface that it arrives on. */
  source: string
  sourceInterface: string
  defaultInterfaces: string[]
  /** The rules that were confirmed last, if any. */
  kept: string
  /** Programs that the firewall needs. */
  missing: string[]
  obstacles: string[]
}

/** Reads what decides whether the firewall can be changed safely. */
export async function surveyFirewall(host: Host): Promise<Found> {
  const user = await host.read(script('id -un'))
  if (user !== 'root')
    throw new Stop(`The firewall needs root, and the login on ${host.name} is ${user}.`, ['Set SSH_ADMIN_USER=root.'])
  const { all, one } = valuesIn(await host.read(survey))
  return {
    source: one('source'),
    sourceInterface: one('via'),
    defaultInterfaces: all('default'),
    kept: all('kept').join('\n'),
    missing: all('missing'),
    obstacles: all('obstacle'),
  }
}

const survey = script(`
say() { sed "s/^/$1=/"; }
source=\${SSH_CONNECTION%% *}
echo "source=$source"
ip -o route get "$source" | sed -n 's/.* dev \\([^ ]*\\).*/via=\\1/p'
{ ip -4 route show default; ip -6 route show default; } | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p' | sort -u | say default
cat /etc/kgc/firewall/rules.v4 /etc/kgc/firewall/rules.v6 2> /dev/null | say kept
for tool in iptables-restore ip6tables-restore unshare flock systemd-run awk curl perl diff; do
  command -v $tool > /dev/null || echo "missing=$tool"
done
if command -v ufw > /dev/null && ufw status | grep -q 'Status: active'; then
  echo 'obstacle=ufw is active, and does not hold for what Docker publishes: ufw disable'
fi
if systemctl is-active -q firewalld; then
  echo 'obstacle=firewalld is active: systemctl disable --now firewalld'
fi
for unit in netfilter-persistent nftables; do
  if systemctl is-enabled -q $unit 2> /dev/null; then
    echo "obstacle=$unit flushes Docker's rules and these when it starts: systemctl disable $unit"
  fi
done
for legacy in iptables-legacy-save ip6tables-legacy-save; do
  if iptables -V | grep -q nf_tables && command -v $legacy > /dev/null && $legacy 2> /dev/null | grep -q '^-A'; then
    echo "obstacle=there are rules of iptables-legacy, which work beside these unseen: $legacy"
  fi
done
for family in iptables ip6tables; do
  $family -w 10 -S DOCKER-USER 2> /dev/null | grep '^-A' | grep -v -e '--comment kgc ' -e '^-A DOCKER-USER -j RETURN$' |
    sed "s/^/obstacle=somebody else's rule in DOCKER-USER ($family), which would be lost: /"
done
case $(docker info -f '{{.FirewallBackend.Driver}}' 2> /dev/null) in
  nftables*) echo 'obstacle=dockerd uses nftables, which ignores DOCKER-USER: set "firewall-backend": "iptables"' ;;
esac
true
`)

/**
 * @throws Stop when the rules cannot be put beside what the server has, or would exclude the one who asks for them
 */
export function assertSafe(found: Found, access: { admins: Cidr[]; interfaces: string[] }, force: boolean): void {
  const obstacles = [...found.missing.map((tool) => `${tool} is not installed`), ...found.obstacles]
  if (obstacles.length > 0)
    throw new Stop(`The firewall was not changed:\n${obstacles.map((obstacle) => `  ${obstacle}`).join('\n')}`)
  const open = access.interfaces.filter((name) => found.defaultInterfaces.includes(name))
  if (open.length > 0)
    throw new Stop(
      `SSH_ALLOW_INTERFACES names ${open.join(', ')}, which leads to the internet: SSH would be open to everybody. The firewall was not changed.`,
    )
  if (force || access.interfaces.includes(found.sourceInterface) || isInside(found.source, access.admins)) return
  throw new Stop(
    `You are connected from ${found.source}, which is not in ADMIN_ADDRESSES: these rules would lock you out. The firewall was not changed.`,
    [
      `Add ${found.source} to ADMIN_ADDRESSES, or connect from an admin address.`,
      'With --force they are tried all the same, and put back unless a new connection comes through.',
    ],
  )
}

/** What would change in the kernel's own words. Nothing is written: the rules are loaded into an empty network namespace. */
export async function compare(host: Host, rules: Record<Family, string>): Promise<Record<Family, string[]>> {
  const [v4, v6] = await Promise.all(
    FAMILIES.map(async (family) => {
      const [active, wanted] = await Promise.all([
        readActive(host, family),
        host.read(sh`unshare -n sh -c ${serverText('kgc-firewall')} kgc-firewall expected ${family}`, {
          input: rules[family],
        }),
      ])
      return difference(active, wanted)
    }),
  )
  return { 4: v4 ?? [], 6: v6 ?? [] }
}

const readActive = (host: Host, family: Family) =>
  host.read(sh`sh -c ${serverText('kgc-firewall')} kgc-firewall active ${family}`)

/** With the program's text from here: it works also where it was never installed, or was damaged. */
export const switchOff = (host: Host) => host.write(sh`sh -c ${serverText('kgc-firewall')} kgc-firewall off`)

const PROGRAMS = ['kgc-firewall', 'kgc-cloudflare', 'kgc-ranges']
const UNITS = [
  'kgc-firewall.service',
  ...['kgc-firewall-watch', 'kgc-cloudflare'].flatMap((name) => [`${name}.service`, `${name}.timer`]),
]

/** The programs, their units and what makes dockerd wait for them. */
export const FIREWALL_FILES: ServerFile[] = [
  ...TELLING_FILES,
  ...PROGRAMS.map((name) => ({ path: `/usr/local/sbin/${name}`, content: serverText(name), mode: '755' })),
  ...UNITS.map((name) => ({ path: `/etc/systemd/system/${name}`, content: serverText(name), mode: '644' })),
  {
    path: '/etc/systemd/system/docker.service.d/kgc-firewall.conf',
    content: serverText('docker-firewall.conf'),
    mode: '644',
  },
]

/** Where the server tells that something is wrong, and where it asks for Cloudflare's ranges every day; what is undefined is switched off. */
export type Reports = { webhook: string | undefined; rangesUrl: string | undefined }

/**
 * Puts the programs, their units and the next rules in their places; none of it changes a rule.
 * @param reports without it both stay as they are
 * @returns the name of these rules, by which they are tried and confirmed: another run may be at work with its own
 */
export async function install(host: Host, rules: Record<Family, string>, reports?: Reports): Promise<string> {
  const name = randomUUID()
  const next = `/run/kgc-firewall/next-${name}`
  await putFiles(host, FIREWALL_FILES)
  await host.write(sh`install -d -m 700 /run/kgc-firewall ${next} /etc/kgc /etc/kgc/firewall`)
  if (reports) {
    await putFiles(host, [webhookFile(reports.webhook)])
    await putOrRemove(host, RANGES_URL, reports.rangesUrl)
  }
  for (const family of FAMILIES) await putFile(host, `${next}/rules.v${family}`, rules[family])
  await host.write(sh`systemctl daemon-reload`)
  return name
}

const putOrRemove = (host: Host, path: string, content: string | undefined) =>
  content === undefined ? host.write(sh`rm -f ${path}`) : putFile(host, path, content)

/**
 * Gives nginx the ranges of the firewall, and what it needs to ask for a certificate; tested, and put back when it refuses.
 * @param files as `originPullFiles` makes them
 * @throws Stop that says what nginx goes on with
 */
export async function giveNginx(host: Host, files: Partial<Record<string, string>>): Promise<void> {
  for (const name of ORIGIN_FILES) await putOrRemove(host, `${NGINX_FILES}/${name}`, files[name])
  try {
    await host.write(sh`/usr/local/sbin/kgc-cloudflare nginx`, { timeout: 90 })
  } catch (error) {
    throw new Stop(`The firewall is active, but nginx goes on with what it had before.\n${messageOf(error)}`, [
      'When the reason is gone, again: npx tsx scripts/harden-firewall.ts',
    ])
  }
}

/** The rules that were confirmed last; empty on a server that has none. */
export const readKept = (host: Host) =>
  host.read(script('cat /etc/kgc/firewall/rules.v4 /etc/kgc/firewall/rules.v6 2> /dev/null || true'))

/** The server's own answer whether what is active is what its files say. */
export const checkActive = (host: Host) =>
  host.probe(
    script(`[ -x ${FIREWALL} ] || { echo 'There is no firewall on this server yet.' >&2; exit 1; }; ${FIREWALL} check`),
  )

export const readCounters = (host: Host) =>
  host.read(
    script(`
for family in iptables ip6tables; do
  echo "# $family"
  for chain in KGC-IN DOCKER-USER KGC-CF; do $family -w 10 -nvL $chain 2> /dev/null || echo "no chain $chain"; done
  $family -w 10 -t mangle -nvL KGC-FORWARD 2> /dev/null || echo 'no chain KGC-FORWARD'
done`),
  )
