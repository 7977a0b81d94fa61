import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { parse } from 'dotenv'
import { Stop } from '../../lib/errors.ts'
import type { Host } from '../../lib/host.ts'
import { BACKUP_FOLDER, NGINX_CONF, PROXY, ROOT } from '../../lib/layout.ts'
import { localHost } from '../../lib/local.ts'
import type { Log } from '../../lib/log.ts'
import { putFile } from '../../lib/put-file.ts'
import { script, sh } from '../../lib/shell.ts'
import { DOMAIN, inState, NETWORKS, PROJECT_DIR, REGISTRY, RUNNER_ADDRESS, S3, SERVER, SINK } from './names.ts'
import { ageRecipient, s3Keys } from './s3.ts'
import { connectAs, hostKey, registryPassword } from './server.ts'

/** Makes the blank server one that deploy.ts can deploy to: as an operator would, then with what only a rehearsal has. */
export async function setUpServer(log: Log): Promise<void> {
  const { code } = await localHost().probe(
    sh`cd ${PROJECT_DIR} && node --import tsx scripts/bootstrap-server.ts --yes --env ${inState('.env')}`,
    { timeout: 1200, onLine: (line) => process.stderr.write(`  ${line}\n`) },
  )
  if (code !== 0) throw new Stop(`bootstrap-server.ts ended with exit code ${code}.`)
  await log.step('What only a rehearsal has', putRehearsalFiles)
}

/** Certificates of an authority that nobody knows, and a network that plays Cloudflare. */
export async function putRehearsalFiles(): Promise<void> {
  const root = await connectAs('root')
  try {
    await playCloudflare(root)
    await trustRegistry(root)
    await putFile(root, `${ROOT}/${BACKUP_FOLDER}/state.json`, backedUp(), { mode: '600' })
  } finally {
    await root.close()
  }
  writeFileSync(inState('ready'), '')
}

/** On a new server the first backup is due at once, and cron would begin it in the middle of a test. */
const backedUp = () => JSON.stringify({ sizes: {}, lastGood: new Date().toISOString() })

/** A real registry has a certificate that every server believes. */
export const trustRegistry = (root: Host) =>
  putFile(root, `/etc/docker/certs.d/${REGISTRY.host}/ca.crt`, readFileSync(inState('ca.pem'), 'utf8'), { mode: '644' })

/** nginx believes a closed network of the rehearsal as it believes Cloudflare. harden-firewall.ts tells it better. */
export async function playCloudflare(root: Host): Promise<void> {
  const [file, content] = [`${ROOT}/state/nginx/cloudflare.conf`, `set_real_ip_from ${NETWORKS.edge.subnet};\n`]
  if ((await root.probe(sh`cat ${file}`)).stdout === content) return
  await putFile(root, file, content, { owner: 'deploy', mode: '644' })
  await root.probe(sh`docker exec ${PROXY} nginx -q -c ${NGINX_CONF} -s reload`)
}

const WATCH_BY_HAND = '/etc/systemd/system/kgc-firewall-watch.timer.d/by-hand.conf'

/** The watch runs when a test asks for it, until `forgetFirewall`: every five minutes by the clock it would undo what a test breaks. */
export async function watchByHand(root: Host): Promise<void> {
  await putFile(root, WATCH_BY_HAND, '[Timer]\nOnCalendar=\nOnCalendar=yearly\n', { mode: '644' })
  await root.write(sh`systemctl daemon-reload`)
}

/** As before the first harden-firewall.ts. A server that lost its rules, and should have them at boot, is closed but for SSH. */
export async function forgetFirewall(root: Host): Promise<void> {
  await root.write(
    script(`/usr/local/sbin/kgc-firewall off
systemctl disable -q kgc-firewall.service
rm -rf /etc/kgc/firewall /run/kgc-tell ${WATCH_BY_HAND}
systemctl daemon-reload`),
  )
  await playCloudflare(root)
}

const SINK_WEBHOOK = `${SINK.url}/services/T0REHEARSAL/B0REHEARSAL/rehearsalwebhook`

/** The operator's configuration of the rehearsal, as a production .env would be. README.md documents it as an interface. */
export async function writeOperatorEnv(): Promise<void> {
  const before = existsSync(inState('.env')) ? parse(readFileSync(inState('.env'))) : {}
  const kept = (name: string) => before[name] ?? randomBytes(16).toString('hex')
  writeFileSync(
    inState('.env'),
    toEnv({
      DOMAIN,
      FRONT_IP: SERVER.address,
      FRONT_PORT: 443,
      FRONT_CA_FILE: 'ca.pem',
      CERTIFICATE: 'files',
      CERTIFICATE_FILE: 'site.crt',
      CERTIFICATE_KEY_FILE: 'site.key',
      SMOKE_EMAIL: `smoke@${DOMAIN}`,
      SMOKE_PASSWORD: kept('SMOKE_PASSWORD'),
      SSH_HOST: SERVER.address,
      SSH_PORT: 22,
      SSH_USER: 'deploy',
      SSH_KEY_FILE: 'id_ed25519',
      SSH_HOST_KEY: await hostKey(),
      REGISTRY: `${REGISTRY.host}/kgc`,
      REGISTRY_USER: REGISTRY.user,
      REGISTRY_PASSWORD: registryPassword(),
      DOCKER_HUB_MIRROR: `http://${REGISTRY.address}:5001`,
      SZAMLAZZ_HU_AGENT_KEY: kept('SZAMLAZZ_HU_AGENT_KEY'),
      ADMIN_ADDRESSES: RUNNER_ADDRESS,
      // Cloudflare's own ranges have no part in the rehearsal, and it cannot be asked for them.
      CLOUDFLARE_RANGES_FILE: '../nginx/cloudflare.conf',
      EXTRA_HTTPS_SOURCES: `${NETWORKS.edge.subnet},${RUNNER_ADDRESS}`,
      HEALTH_TIMEOUT: 5,
      MIN_FREE_DISK_GB: 5,
      S3_ENDPOINT: S3.endpoint,
      S3_CA_FILE: 'ca.pem',
      S3_REGION: 'us-east-1',
      S3_BUCKET: S3.bucket,
      S3_ACCESS_KEY_ID: s3Keys().id,
      S3_SECRET_ACCESS_KEY: s3Keys().secret,
      SLACK_WEBHOOK_URL: SINK_WEBHOOK,
      BACKUP_RECIPIENTS: ageRecipient(),
      BACKUP_IDENTITY_FILE: 'age-identity.txt',
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
