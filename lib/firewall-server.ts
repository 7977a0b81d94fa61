import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { type Cidr, isInside } from './cidr.ts'
import { Stop } from './errors.ts'
import { difference, FAMILIES, type Family } from './firewall.ts'
import type { Host } from './host.ts'
import { putFile } from './put-file.ts'
import { script, sh } from './shell.ts'

export const FIREWALL = '/usr/local/sbin/kgc-firewall'
const file = (name: string) => readFileSync(fileURLToPath(new URL(`../server/${name}`, import.meta.url)), 'utf8')

export type Found = {
  /** The address that this run comes from, as the server sees it, and the interface that it arrives on. */
  source: string
  sourceInterface: string
  defaultInterfaces: string[]
  /** The rules that were confirmed last, if any. */
  kept: string
  obstacles: string[]
}

/** Reads what decides whether the firewall can be changed safely. */
export async function surveyFirewall(host: Host): Promise<Found> {
  const user = await host.read(script('id -un'))
  if (user !== 'root')
    throw new Stop(`The firewall needs root, and the login on ${host.name} is ${user}.`, ['Set SSH_ADMIN_USER=root.'])
  const lines = (await host.read(survey)).split('\n')
  const values = (name: string) =>
    lines.filter((line) => line.startsWith(`${name}=`)).map((line) => line.slice(name.length + 1))
  return {
    source: values('source')[0] ?? '',
    sourceInterface: values('via')[0] ?? '',
    defaultInterfaces: values('default'),
    kept: values('kept').join('\n'),
    obstacles: values('obstacle'),
  }
}

const survey = script(`
say() { sed "s/^/$1=/"; }
source=\${SSH_CONNECTION%% *}
echo "source=$source"
ip -o route get "$source" | sed -n 's/.* dev \\([^ ]*\\).*/via=\\1/p'
{ ip -4 route show default; ip -6 route show default; } | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p' | sort -u | say default
cat /etc/kgc/firewall/rules.v4 /etc/kgc/firewall/rules.v6 2> /dev/null | say kept
for tool in iptables-restore ip6tables-restore unshare flock systemd-run awk; do
  command -v $tool > /dev/null || echo "obstacle=$tool is not installed"
done
if command -v ufw > /dev/null && ufw status | grep -q 'Status: active'; then
  echo 'obstacle=ufw is active, and does not hold for what Docker publishes: ufw disable'
fi
if systemctl is-active -q firewalld; then
  echo 'obstacle=firewalld is active: systemctl disable --now firewalld'
fi
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
  if (found.obstacles.length > 0)
    throw new Stop(`The firewall was not changed:\n${found.obstacles.map((obstacle) => `  ${obstacle}`).join('\n')}`)
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
        host.read(sh`unshare -n sh -c ${file('kgc-firewall')} kgc-firewall expected ${family}`, {
          input: rules[family],
        }),
      ])
      return difference(active, wanted)
    }),
  )
  return { 4: v4 ?? [], 6: v6 ?? [] }
}

const readActive = (host: Host, family: Family) =>
  host.read(sh`sh -c ${file('kgc-firewall')} kgc-firewall active ${family}`)

/** With the program's text from here: it works also where it was never installed, or was damaged. */
export const switchOff = (host: Host) => host.write(sh`sh -c ${file('kgc-firewall')} kgc-firewall off`)

/** Puts the program, its unit and the candidate in their places; none of it changes a rule. */
export async function install(host: Host, rules: Record<Family, string>): Promise<void> {
  await putFile(host, FIREWALL, file('kgc-firewall'), { mode: '755' })
  await putFile(host, '/etc/systemd/system/kgc-firewall.service', file('kgc-firewall.service'), { mode: '644' })
  await putFile(host, '/etc/systemd/system/docker.service.d/kgc-firewall.conf', file('docker-firewall.conf'), {
    mode: '644',
  })
  await host.write(script('install -d -m 700 /run/kgc-firewall /run/kgc-firewall/candidate /etc/kgc /etc/kgc/firewall'))
  for (const family of FAMILIES) await putFile(host, `/run/kgc-firewall/candidate/rules.v${family}`, rules[family])
  await host.write(sh`systemctl daemon-reload`)
}

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
done`),
  )
