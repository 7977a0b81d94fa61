import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { parse } from 'dotenv'
import { ROOT } from '../../lib/layout.ts'
import { putFile } from '../../lib/put-file.ts'
import { generateSecrets, redisAcl } from '../../lib/secrets.ts'
import { script, sh } from '../../lib/shell.ts'
import { DOMAIN, inState, NETWORKS, REGISTRY, RUNNER_ADDRESS, SERVER, SINK } from './names.ts'
import { connectAs, hostKey, registryPassword } from './server.ts'

/**
 * Makes the blank server ready for deploy.ts, over SSH as root: Docker's settings, the deploy user, /opt/kgc with its
 * secrets and certificates. It does what bootstrap-server.ts will do for a real server, and gives way to it.
 */
export async function setUpServer(): Promise<void> {
  const root = await connectAs('root')
  try {
    await root.write(dockerSettings, { timeout: 90 })
    await root.write(frontDoorRules)
    await root.write(deployUser)
    const put = (file: string, content: string, owner = 'deploy', mode = '600') =>
      putFile(root, file, content, { owner, mode })
    const gid = await root.read(script('id -g deploy'))
    const existing = parse((await root.probe(sh`cat ${`${ROOT}/.env`}`)).stdout)
    const secrets = generateSecrets({ SZAMLAZZ_HU_AGENT_KEY: randomBytes(16).toString('hex'), ...existing })
    await put(`${ROOT}/.env`, stackEnv(gid, secrets))
    for (const redis of ['redis', 'redis-queue'])
      await put(`${ROOT}/secrets/${redis}/users.acl`, redisAcl(secrets), 'deploy', '640')
    await put(`${ROOT}/certs/fullchain.pem`, readFileSync(inState('site.crt'), 'utf8'), 'root', '644')
    await put(`${ROOT}/certs/privkey.pem`, readFileSync(inState('site.key'), 'utf8'), 'root')
    await put(`${ROOT}/state/nginx/cloudflare.conf`, `set_real_ip_from ${NETWORKS.edge.subnet};\n`, 'deploy', '644')
    await put(`${ROOT}/state/nginx/admins.conf`, `allow ${RUNNER_ADDRESS};\n`, 'deploy', '644')
    await put(`/etc/docker/certs.d/${REGISTRY.host}/ca.crt`, readFileSync(inState('ca.pem'), 'utf8'), 'root', '644')
    writeOperatorEnv(await hostKey(), secrets)
  } finally {
    await root.close()
  }
}

const dockerSettings = script(`
set -e
cat > /etc/docker/daemon.json.next <<'END'
{
  "registry-mirrors": ["http://${REGISTRY.address}:5001"],
  "live-restore": true,
  "userland-proxy": false,
  "log-driver": "json-file",
  "log-opts": { "max-size": "10m", "max-file": "5" },
  "default-address-pools": [{ "base": "172.24.0.0/14", "size": 24 }]
}
END
cmp -s /etc/docker/daemon.json.next /etc/docker/daemon.json || { mv /etc/docker/daemon.json.next /etc/docker/daemon.json; systemctl restart docker; }
sysctl -q -w vm.overcommit_memory=1 2>/dev/null || true
`)

/**
 * A restart of dockerd takes its own port rules away for 0.3 s (measured), and new connections are refused meanwhile.
 * These stay: packets find nginx at its fixed address whatever dockerd does.
 */
const frontDoorRules = script(`
set -e
cat > /etc/systemd/system/kgc-front-door.service <<'END'
[Unit]
Description=Ports 80 and 443 lead to nginx, also while dockerd restarts
Before=docker.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'iptables -w -t nat -N KGC-FRONT-DOOR 2>/dev/null || iptables -w -t nat -F KGC-FRONT-DOOR'
ExecStart=/bin/sh -c 'for port in 80 443; do iptables -w -t nat -A KGC-FRONT-DOOR -p tcp --dport $port -j DNAT --to-destination 172.22.0.10:$port; done'
ExecStart=/bin/sh -c 'iptables -w -t nat -C PREROUTING -m addrtype --dst-type LOCAL -j KGC-FRONT-DOOR 2>/dev/null || iptables -w -t nat -I PREROUTING -m addrtype --dst-type LOCAL -j KGC-FRONT-DOOR'
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable -q --now kgc-front-door.service
`)

const deployUser = script(`
set -e
id deploy > /dev/null 2>&1 || useradd --create-home --shell /bin/bash --groups docker deploy
install -d -m 700 -o deploy -g deploy /home/deploy/.ssh
install -m 600 -o deploy -g deploy /root/.ssh/authorized_keys /home/deploy/.ssh/authorized_keys
install -d -m 755 -o deploy -g deploy ${ROOT} ${ROOT}/state ${ROOT}/state/nginx
install -d -m 700 -o deploy -g deploy ${ROOT}/secrets
install -d -m 750 -o deploy -g deploy ${ROOT}/secrets/redis ${ROOT}/secrets/redis-queue
install -d -m 700 -o root -g root ${ROOT}/certs
runuser -u deploy -- git -C ${ROOT} rev-parse --git-dir > /dev/null 2>&1 || runuser -u deploy -- git -C ${ROOT} init -q
`)

/** The stack's variables, with limits that this machine can give: Docker refuses more CPUs than there are. */
function stackEnv(gid: string, secrets: Record<string, string>): string {
  const cores = cpus().length
  const small = totalmem() < 30 * 1024 ** 3
  const fit = (wanted: number) => Math.min(wanted, cores)
  return toEnv({
    DOMAIN,
    REGISTRY: `${REGISTRY.host}/kgc`,
    DEPLOY_GID: gid,
    SMOKE_EMAIL: `smoke@${DOMAIN}`,
    KGC_DB_USER: 'kgc_a',
    TWENTY_DB_USER: 'twenty_a',
    CHATWOOT_DB_USER: 'chatwoot_a',
    HORILLA_DB_USER: 'horilla_a',
    POSTGRES_CPUS: fit(4),
    KGC_BACKEND_CPUS: fit(2),
    ...(small ? { POSTGRES_MEMORY: '4g', POSTGRES_SHARED_BUFFERS: '512MB', POSTGRES_EFFECTIVE_CACHE_SIZE: '2GB' } : {}),
    ...secrets,
  })
}

/** The operator's configuration of the rehearsal, as a production .env would be. README.md documents it as an interface. */
function writeOperatorEnv(pinnedKey: string, secrets: Record<string, string>): void {
  writeFileSync(
    inState('.env'),
    toEnv({
      DOMAIN,
      FRONT_IP: SERVER.address,
      FRONT_PORT: 443,
      FRONT_CA_FILE: 'ca.pem',
      SMOKE_EMAIL: `smoke@${DOMAIN}`,
      SMOKE_PASSWORD: secrets.SMOKE_PASSWORD ?? '',
      SSH_HOST: SERVER.address,
      SSH_PORT: 22,
      SSH_USER: 'deploy',
      SSH_KEY_FILE: 'id_ed25519',
      SSH_HOST_KEY: pinnedKey,
      REGISTRY: `${REGISTRY.host}/kgc`,
      REGISTRY_USER: REGISTRY.user,
      REGISTRY_PASSWORD: registryPassword(),
      ADMIN_ADDRESSES: RUNNER_ADDRESS,
      // Cloudflare's own ranges have no part in the rehearsal.
      EXTRA_HTTPS_SOURCES: `${NETWORKS.edge.subnet},${RUNNER_ADDRESS}`,
      HEALTH_TIMEOUT: 5,
      MIN_FREE_DISK_GB: 5,
      SLACK_WEBHOOK_URL: `${SINK.url}/services/T0REHEARSAL/B0REHEARSAL/rehearsalwebhook`,
    }),
    { mode: 0o600 },
  )
}

const toEnv = (values: Record<string, string | number>) =>
  Object.entries(values)
    .map(([name, value]) => `${name}=${value}\n`)
    .join('')

/** The registry's password outlives the server: it is made once. */
export function makeRegistryPassword(): void {
  const file = inState('registry-password')
  if (!existsSync(file)) writeFileSync(file, randomBytes(16).toString('hex'), { mode: 0o600 })
}
