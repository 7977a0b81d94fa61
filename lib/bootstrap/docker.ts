import { messageOf, Stop } from '../errors.ts'
import { script } from '../shell.ts'
import { filesStep, type Step } from './step.ts'

/** `start_interval` of the stack's health checks needs Docker 25 and Compose 2.21 (compose/data.yaml). */
const LEAST = { engine: [25, 0], compose: [2, 21] } as const

/** Docker's own repository signs with this key (https://docs.docker.com/engine/install/). */
const KEY = '9DC858229FC7DD38854AE2D88D81803C0EBFCD88'
const KEY_FILE = '/etc/apt/keyrings/docker.asc'
const FROM_DOCKER = ['docker-ce', 'docker-ce-cli', 'containerd.io', 'docker-compose-plugin']

export type DockerPlan = { from: 'present' | 'distribution' | 'docker'; packages: string[]; why: string }

/** `5:26.1.5+dfsg1-9` is 26.1 */
function isAtLeast(version: string | undefined, [major, minor]: readonly [number, number]): boolean {
  const [, first, second] = /^(?:\d+:)?v?(\d+)\.(\d+)/.exec(version ?? '') ?? []
  return Number(first) > major || (Number(first) === major && Number(second) >= minor)
}

/** `own` when the engine is a package of Docker's own repository. */
export type InstalledDocker = { engine?: string; compose?: string; own?: boolean }

const has = ({ engine, compose }: { engine?: string | undefined; compose?: string | undefined }) =>
  isAtLeast(engine, LEAST.engine) && isAtLeast(compose, LEAST.compose)

/** Whether what is installed decides, whatever apt would install. */
export const isDecided = (installed: InstalledDocker) => has(installed) || installed.own === true

/**
 * Decides where Docker comes from.
 * @param installed versions of what is there already, if anything
 * @param candidates the versions that apt would install, by package; they may be missing when `isDecided`
 * @throws Stop when the Docker that is installed is in the way
 */
export function planDocker(installed: InstalledDocker, candidates: Record<string, string>): DockerPlan {
  if (has(installed)) return { from: 'present', packages: [], why: `${installed.engine} is installed` }
  if (installed.engine && !isAtLeast(installed.engine, LEAST.engine))
    throw new Stop(
      `Docker ${installed.engine} is installed; the stack needs ${LEAST.engine[0]} or later. Nothing was touched.`,
      ['Remove it on the server (`apt-get remove docker.io docker-ce`; its volumes stay), then run this again.'],
    )
  const noCompose = `${installed.engine} is installed without Compose ${LEAST.compose.join('.')} or later`
  if (installed.engine && installed.own) return { from: 'docker', packages: FROM_DOCKER, why: noCompose }
  const compose = ['docker-compose-v2', 'docker-compose'].find((name) => isAtLeast(candidates[name], LEAST.compose))
  if (compose && has({ engine: candidates['docker.io'], compose: candidates[compose] })) {
    const packages = ['docker.io', 'docker-cli', compose].filter((name) => candidates[name])
    return { from: 'distribution', packages, why: `the distribution has ${candidates['docker.io']}` }
  }
  if (installed.engine)
    throw new Stop(`Docker ${noCompose}, and the distribution has none. Nothing was touched.`, [
      'Remove it on the server (`apt-get remove docker.io`; its volumes stay), then run this again.',
    ])
  const offered = candidates['docker.io'] ? `only ${candidates['docker.io']}` : 'no Docker'
  return { from: 'docker', packages: FROM_DOCKER, why: `the distribution has ${offered}` }
}

/** Docker's own packages, from its repository; the key is believed only when it is the pinned one. */
export const dockerRepository = (distribution: 'debian' | 'ubuntu', codename: string): Step => {
  const site = `https://download.docker.com/linux/${distribution}`
  const source = `deb [signed-by=${KEY_FILE}] ${site} ${codename} stable`
  return {
    title: "Docker's package repository",
    check: `
grep -qsxF ${`'${source}'`} /etc/apt/sources.list.d/docker.list || echo 'apt does not know it'
[ -s ${KEY_FILE} ] || echo 'its key is missing'`,
    async apply(host) {
      await host.write(
        script(`
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update > /var/log/kgc-bootstrap.log
apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends ca-certificates curl gnupg >> /var/log/kgc-bootstrap.log
install -d -m 755 /etc/apt/keyrings
curl -fsSL --max-time 60 --retry 3 ${site}/gpg -o ${KEY_FILE}.next
keys=$(gpg --show-keys --with-colons ${KEY_FILE}.next)
found=$(echo "$keys" | sed -n 's/^fpr:*\\([0-9A-F]*\\):$/\\1/p' | head -n 1)
[ "$(echo "$keys" | grep -c ^pub:)" = 1 ] || found="$found and others"
[ "$found" = ${KEY} ] || { rm ${KEY_FILE}.next; echo "${site}/gpg is not the pinned key ${KEY} but $found" >&2; exit 1; }
chmod 644 ${KEY_FILE}.next
mv ${KEY_FILE}.next ${KEY_FILE}
echo '${source}' > /etc/apt/sources.list.d/docker.list`),
        { timeout: 400 },
      )
    },
  }
}

const SETTINGS = {
  // Containers go on while dockerd is restarted or upgraded.
  'live-restore': true,
  // A proxy on the host would answer over IPv6 past the rules for containers, and hide who asks.
  'userland-proxy': false,
  'no-new-privileges': true,
  // Of IPv6 Docker has nothing to do here: ports are published on 0.0.0.0, and without the proxy nothing else listens. Before 27
  // `ip6tables` would take its experimental features.
  icc: false,
  'log-driver': 'json-file',
  'log-opts': { 'max-size': '10m', 'max-file': '5' },
  // Away from the networks that the stack names: 172.20, 172.21 and 172.22.
  'default-address-pools': [{ base: '172.24.0.0/14', size: 24 }],
}
/** What would open the server past its firewall. */
const FORBIDDEN: Record<string, (value: unknown) => boolean> = {
  iptables: (value) => value === false,
  ip6tables: (value) => value === false,
  'allow-direct-routing': (value) => value === true,
  'firewall-backend': (value) => value === 'nftables',
  hosts: (value) => Array.isArray(value) && value.some((host) => String(host).startsWith('tcp:')),
}

/**
 * The text of daemon.json: what somebody set there for another reason, such as the MTU of a private network, stays.
 * @param existing the file's text, or '' when there is none; it is returned as it is when nothing is to change
 * @throws Stop when it cannot be read, or says something that opens the server
 */
export function daemonJson(existing: string, mirror?: string): string {
  const found = parseDaemon(existing)
  const open = Object.keys(found).filter((name) => FORBIDDEN[name]?.(found[name]))
  if (open.length > 0)
    throw new Stop(
      `/etc/docker/daemon.json on the server sets ${open.join(', ')}, which goes past the firewall. Nothing was touched.`,
      ['Remove it there.'],
    )
  const wanted = { ...SETTINGS, ...(mirror ? { 'registry-mirrors': [mirror] } : {}) }
  const same = Object.entries(wanted).every(([name, value]) => JSON.stringify(found[name]) === JSON.stringify(value))
  return same ? existing : `${JSON.stringify({ ...found, ...wanted }, null, 2)}\n`
}

function parseDaemon(text: string): Record<string, unknown> {
  try {
    return text.trim() === '' ? {} : JSON.parse(text)
  } catch (error) {
    throw new Stop(`/etc/docker/daemon.json on the server cannot be read: ${messageOf(error)}. Nothing was touched.`, [
      'Mend it there, or remove it.',
    ])
  }
}

/** Written before Docker is installed, so that it starts with them. */
export const dockerSettings = (existing: string, mirror?: string): Step =>
  filesStep("Docker's settings", [
    { path: '/etc/docker/daemon.json', content: daemonJson(existing, mirror), mode: '644' },
  ])

/** Restarting dockerd leaves the containers alone, once live-restore is set. */
export const dockerRuns: Step = {
  title: 'Docker runs with them',
  check: `
systemctl is-enabled -q docker || echo 'it does not start at boot'
running=$(systemctl show -p ExecMainStartTimestamp --value docker)
if systemctl is-active -q docker; then
  [ "$(date -d "$running" +%s)" -ge "$(stat -c %Y /etc/docker/daemon.json)" ] || echo 'it was started before its settings were written'
  docker info -f '{{.LiveRestoreEnabled}}' | grep -qx true || echo 'live-restore is off'
  docker compose version --short > /dev/null
else
  echo 'it does not run'
fi`,
  async apply(host) {
    // systemd refuses a service that starts for the fourth time in a minute, as it does when this is run again and again.
    await host.write(
      script(
        'systemctl enable -q docker && { systemctl reset-failed docker 2> /dev/null; systemctl restart docker; } && docker info > /dev/null',
      ),
      { timeout: 120 },
    )
  },
}
