import { isInside } from '../cidr.ts'
import { Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { valuesIn } from '../lines.ts'
import type { AccessSettings } from '../settings.ts'
import { script } from '../shell.ts'

export type Facts = {
  /** `debian 12` */
  system: string
  codename: string
  cores: number
  memoryGb: number
  freeGb: number
  /** Where this run comes from, as the server sees it, and the interface that it arrives on. */
  source: string
  via: string
  /** The login of this run. */
  login: string
  /** False when nothing of ours is on it. */
  known: boolean
  engine: string
  compose: string
  /** The engine is a package of Docker's own repository. */
  own: boolean
  daemonJson: string
  obstacles: string[]
}

const SYSTEMS = ['debian 12', 'debian 13', 'ubuntu 22.04', 'ubuntu 24.04']
/** What the stack needs to start at all, with limits that fit; it was sized for 32 GB and 500 GB. */
const LEAST = { memoryGb: 7, freeGb: 15 }

/** Everything that decides whether and how this server can be set up, in one round trip. Needs nothing but a shell. */
const survey = script(`
one() { echo "$1=$2"; }
one kernel "$(uname -s)"
. /etc/os-release 2> /dev/null
one system "$ID $VERSION_ID"
one codename "$VERSION_CODENAME"
one cores "$(nproc)"
one memory "$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"
one free "$(df -Pk / /var /opt $(ls -d /var/lib/docker /opt/kgc 2> /dev/null) | awk 'NR > 1 { print $4 }' | sort -n | head -n 1)"
one source "\${SSH_CONNECTION%% *}"
one via "$(ip -o route get "\${SSH_CONNECTION%% *}" 2> /dev/null | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p')"
one login "\${SUDO_USER:-$(id -un)}"
[ -s /opt/kgc/.env ] && one known yes
if command -v docker > /dev/null; then
  one engine "$(docker version -f '{{.Server.Version}}' 2> /dev/null || dockerd --version 2> /dev/null | sed -n 's/.*version \\([^,]*\\),.*/\\1/p')"
  one compose "$(docker compose version --short 2> /dev/null)"
  # Also one whose installation was cut off.
  if dpkg-query -W -f '\${db:Status-Status}\\n' docker-ce 2> /dev/null | grep -qvx -e not-installed -e config-files; then one own yes; fi
  docker ps --format '{{.Names}} {{.Label "com.docker.compose.project"}}' 2> /dev/null | grep -v ' kgc$' |
    sed 's/ .*//; s/^/obstacle=a container that is not of this stack runs: /'
  case $(readlink -f "$(command -v docker)") in /snap/*) one obstacle 'Docker is a snap, whose files are elsewhere: snap remove docker' ;; esac
fi
[ ! -s /etc/docker/daemon.json ] || sed 's/^/daemon=/' /etc/docker/daemon.json
command -v apt-get > /dev/null || one obstacle 'there is no apt-get'
[ -d /run/systemd/system ] || one obstacle 'systemd does not run'
if command -v ufw > /dev/null && ufw status | grep -q 'Status: active'; then
  one obstacle 'ufw is active, and does not hold for what Docker publishes: ufw disable'
fi
if systemctl is-active -q firewalld 2> /dev/null; then one obstacle 'firewalld is active: systemctl disable --now firewalld'; fi
if problem=$(sshd -t 2>&1); then :; else one obstacle "sshd refuses its own settings: $(echo "$problem" | head -n 1)"; fi
true`)

export async function readFacts(host: Host): Promise<Facts> {
  return parseFacts(await host.read(survey))
}

export function parseFacts(output: string): Facts {
  const { all, one } = valuesIn(output)
  const [system, kernel] = [one('system'), one('kernel')]
  return {
    system,
    codename: one('codename'),
    cores: Number(one('cores')),
    memoryGb: Number(one('memory')) / 1024 ** 2,
    freeGb: Math.floor(Number(one('free')) / 1024 ** 2),
    source: one('source'),
    via: one('via'),
    login: one('login'),
    known: one('known') === 'yes',
    engine: one('engine'),
    compose: one('compose'),
    own: one('own') === 'yes',
    daemonJson: all('daemon')
      .map((line) => `${line}\n`)
      .join(''),
    obstacles: [
      ...(kernel === 'Linux' ? [] : [`this is ${kernel || 'nothing that answers uname'}, not Linux`]),
      ...(SYSTEMS.includes(system) ? [] : [`this is '${system}'; supported are ${SYSTEMS.join(', ')}`]),
      ...all('obstacle'),
    ],
  }
}

/**
 * @throws Stop with everything at once that stands in the way, before anything is touched
 */
export function assertFit(facts: Facts, access: AccessSettings, hostName: string): void {
  const { obstacles, memoryGb, freeGb, source, via } = facts
  const problems = [...obstacles]
  if (!facts.known && memoryGb < LEAST.memoryGb)
    problems.push(`it has ${memoryGb.toFixed(1)} GB of memory; the stack needs ${LEAST.memoryGb} GB or more`)
  if (!facts.known && freeGb < LEAST.freeGb)
    problems.push(`its disk has ${freeGb} GB free; the stack needs ${LEAST.freeGb} GB or more`)
  if (!isInside(source, access.ADMIN_ADDRESSES) && !access.SSH_ALLOW_INTERFACES.includes(via))
    problems.push(`you are connected from ${source}, which is not in ADMIN_ADDRESSES: the firewall would lock you out`)
  if (problems.length === 0) return
  throw new Stop(
    `${hostName} cannot be set up as it is:\n${problems.map((problem) => `  ${problem}`).join('\n')}\nNothing was touched.`,
    ['Put this right, then run it again.'],
  )
}

/** Asks apt without changing what it knows: its lists are fetched into a folder that is thrown away. */
export async function readCandidates(host: Host, names: string[]): Promise<Record<string, string>> {
  const { code, stdout, stderr } = await host.probe(
    script(`
lists=$(mktemp -d)
trap 'rm -rf "$lists"' EXIT
mkdir "$lists/partial"
asked="-o Dir::State::Lists=$lists -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Acquire::Retries=2"
apt-get -q $asked -o APT::Update::Error-Mode=any update 2>&1 > "$lists/log" || { tail -n 5 "$lists/log" >&2; exit 1; }
for name in ${names.join(' ')}; do
  echo "$name $(apt-cache $asked policy $name | sed -n 's/^  Candidate: //p')"
done`),
    { timeout: 180 },
  )
  if (code !== 0)
    throw new Stop(
      `apt on ${host.name} cannot read its package lists:\n${(stderr || stdout).trim()}\nNothing was touched.`,
      ['Mend /etc/apt/sources.list* or the network on the server: `apt-get update` must work.'],
    )
  const pairs = stdout
    .trim()
    .split('\n')
    .map((line) => line.split(' '))
  return Object.fromEntries(pairs.filter(([, version]) => version && version !== '(none)')) as Record<string, string>
}

/** Limits of the stack's services that this server can give: Docker refuses more CPUs than there are. */
export function limitsFor({ cores, memoryGb }: Facts): Record<string, string | number> {
  return {
    ...(cores < 4 ? { POSTGRES_CPUS: cores } : {}),
    ...(cores < 2 ? { KGC_BACKEND_CPUS: cores, BACKUP_SERVICE_CPUS: cores } : {}),
    ...(memoryGb < 30
      ? { POSTGRES_MEMORY: '4g', POSTGRES_SHARED_BUFFERS: '512MB', POSTGRES_EFFECTIVE_CACHE_SIZE: '2GB' }
      : {}),
  }
}
