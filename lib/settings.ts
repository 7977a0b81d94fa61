import { existsSync } from 'node:fs'
import { isIP } from 'node:net'
import { z } from 'zod'
import { parseCidrs } from './cidr.ts'
import { messageOf } from './errors.ts'

const variable = <T extends z.ZodType>(schema: T, example: string) => schema.meta({ example })
const text = (pattern: RegExp, message: string) => z.string({ error: 'is not set' }).regex(pattern, message)
const anything = z.string({ error: 'is not set' })
const port = z.coerce.number('is not a number').int().min(1).max(65535, 'is not a port number')
const wholeNumber = (min: number, max: number) =>
  z.coerce
    .number('is not a number')
    .int('is not a whole number')
    .min(min, `is below ${min}`)
    .max(max, `is above ${max}`)
const path = anything.refine((file) => existsSync(file), 'names a file that does not exist')

/** Wider than these is a mistake: nobody administers from everywhere. */
const NARROW = { 4: 24, 6: 48 }
const ranges = anything.transform((text, context) => {
  try {
    return parseCidrs(text, NARROW)
  } catch (error) {
    context.addIssue({ code: 'custom', message: messageOf(error) })
    return z.NEVER
  }
})

const domain = variable(text(/^(?!-)[a-z0-9-]+(\.[a-z0-9-]+)+$/, 'is not a bare host name'), 'kgc-erp.hu')

/** How to reach the site as its users do, and the account that the smoke tests log in with. */
const front = z.object({
  DOMAIN: domain,
  FRONT_IP: variable(anything.refine((text) => isIP(text) > 0, 'is not an IP address').optional(), '203.0.113.10'),
  FRONT_PORT: variable(port.default(443), '443'),
  FRONT_CA_FILE: variable(path.optional(), './ca.pem'),
  SMOKE_EMAIL: variable(z.email({ error: 'is not a mail address' }), 'smoke@kgc-erp.hu'),
  SMOKE_PASSWORD: variable(anything, 'a long random word'),
})

/** How to reach the server over SSH. */
const server = z.object({
  SSH_HOST: variable(text(/^[\w.:-]+$/, 'is not a host name or address'), '203.0.113.10'),
  SSH_PORT: variable(port.default(22), '22'),
  SSH_USER: variable(text(/^[a-z_][a-z0-9_-]*$/, 'is not a user name').default('deploy'), 'deploy'),
  SSH_KEY_FILE: variable(path, '~/.ssh/kgc_deploy'),
  SSH_HOST_KEY: variable(
    text(/^SHA256:[A-Za-z0-9+/]{43}$/, 'is not a fingerprint as `ssh-keygen -lf` prints it'),
    'SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU',
  ),
})

/** Where the images of backend and frontend come from. */
const registry = z.object({
  REGISTRY: variable(text(/^[a-z0-9.-]+(:\d+)?(\/[a-z0-9._-]+)+$/, 'is not a registry with a path'), 'ghcr.io/kgc'),
  REGISTRY_USER: variable(anything, 'kgc-deploy'),
  REGISTRY_PASSWORD: variable(anything, 'a token that may only read packages'),
})

/** How a release is judged and kept. */
const release = z.object({
  HEALTH_TIMEOUT: variable(wholeNumber(1, 600).default(15), '15 (seconds for each of the 4 tries of the health gate)'),
  // Not below 3: nginx closes connections that were kept open 2 s after a reload (keepalive_min_timeout), and not before.
  DRAIN_TIMEOUT: variable(wholeNumber(3, 120).default(5), '5 (seconds that requests of the old release may take)'),
  KEEP_RELEASES: variable(wholeNumber(2, 50).default(5), '5'),
  MIN_FREE_DISK_GB: variable(wholeNumber(1, 10_000).default(10), '10'),
  MIGRATE_COMMAND: variable(z.string().optional(), 'npm run migrate'),
})

/** Where messages go. */
const notify = z.object({
  SLACK_WEBHOOK_URL: variable(z.url({ error: 'is not a URL' }).optional(), 'the incoming webhook that Slack gave you'),
})

/** Who may reach which port of the server. */
const access = z.object({
  SSH_ADMIN_USER: variable(text(/^[a-z_][a-z0-9_-]*$/, 'is not a user name').default('root'), 'root'),
  ADMIN_ADDRESSES: variable(ranges, '203.0.113.7,198.51.100.0/28,2001:db8:5::/64'),
  SSH_ALLOW_INTERFACES: variable(
    text(/^[a-z][\w.-]{0,14}(,[a-z][\w.-]{0,14})*$/, 'is not a list of network interfaces')
      .transform((names) => names.split(','))
      .default([]),
    'tailscale0',
  ),
  HTTP_FROM: variable(z.enum(['any', 'cloudflare'], 'is neither any nor cloudflare').default('any'), 'any'),
  CLOUDFLARE_IPS_URL: variable(
    // Without TLS only from addresses that are not on the internet, where nobody on the way answers instead.
    text(
      /^https:\/\/\S+$|^http:\/\/(10|127|192\.168|198\.51\.100)\.[\d.]+(:\d+)?\/\S*$/,
      'is not an https address',
    ).default('https://api.cloudflare.com/client/v4/ips'),
    'https://api.cloudflare.com/client/v4/ips',
  ),
  CLOUDFLARE_RANGES_FILE: variable(path.optional(), 'nginx/cloudflare.conf'),
  ORIGIN_PULL_CA_FILE: variable(path.optional(), '~/.kgc/origin-pull-ca.pem'),
  EXTRA_HTTPS_SOURCES: variable(ranges.default([]), '203.0.113.7'),
})

/** What bootstrap-server needs besides, for what it writes on the server. */
const blank = z.object({
  SZAMLAZZ_HU_AGENT_KEY: variable(anything, "the agent key of the company's account at szamlazz.hu"),
  DOCKER_HUB_MIRROR: variable(z.url({ error: 'is not a URL' }).optional(), 'https://mirror.example'),
})

/** Where the certificate of the sites comes from. */
const certificate = z
  .object({
    DOMAIN: domain,
    CERTIFICATE: variable(
      z.enum(['http', 'dns', 'files'], 'is neither http, dns nor files').default('http'),
      "http (Let's Encrypt asks port 80), dns (it asks Cloudflare), or files",
    ),
    ACME_SERVER: variable(
      text(/^https:\/\/[\w./:-]+$/, 'is not an https:// address').default(
        'https://acme-v02.api.letsencrypt.org/directory',
      ),
      'https://acme-staging-v02.api.letsencrypt.org/directory',
    ),
    CLOUDFLARE_DNS_TOKEN: variable(
      text(/^[\w-]+$/, 'is not a token as Cloudflare shows it').optional(),
      'a token with Zone:DNS:Edit for the one zone',
    ),
    CERTIFICATE_FILE: variable(path.optional(), './origin.pem'),
    CERTIFICATE_KEY_FILE: variable(path.optional(), './origin.key'),
  })
  .superRefine((settings, context) => {
    const needed = {
      http: [],
      dns: ['CLOUDFLARE_DNS_TOKEN'],
      files: ['CERTIFICATE_FILE', 'CERTIFICATE_KEY_FILE'],
    } as const
    for (const name of needed[settings.CERTIFICATE]) {
      if (settings[name] === undefined) context.addIssue({ code: 'custom', path: [name], message: 'is not set' })
    }
  })

/** Where backups are kept: any server that speaks S3. */
const objectStore = z.object({
  S3_ENDPOINT: variable(
    z.url({ protocol: /^https?$/, error: 'is not a URL' }),
    'https://s3.eu-central-2.wasabisys.com',
  ),
  S3_REGION: variable(text(/^[a-z0-9-]+$/, 'is not the name of a region'), 'eu-central-2'),
  S3_BUCKET: variable(text(/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/, 'is not the name of a bucket'), 'kgc-backup'),
  S3_PREFIX: variable(text(/^[\w-]+(\/[\w-]+)*$/, 'is not a path such as kgc or erp/kgc').default('kgc'), 'kgc'),
  S3_ACCESS_KEY_ID: variable(anything, 'the key that may write to the bucket'),
  S3_SECRET_ACCESS_KEY: variable(anything, 'the secret of that key'),
  S3_CA_FILE: variable(path.optional(), './ca.pem'),
  S3_TIMEOUT: variable(wholeNumber(1, 600).default(120), '120 (seconds until a request without an answer is given up)'),
})

/** How backups are made and kept. */
const backup = z.object({
  BACKUP_RECIPIENTS: variable(
    text(/^age1[a-z0-9]+(,age1[a-z0-9]+)*$/, 'is not a list of public keys as age-keygen prints them').transform(
      (keys) => keys.split(','),
    ),
    'age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p',
  ),
  BACKUP_KEEP_DAYS: variable(wholeNumber(1, 3650).default(30), '30'),
  BACKUP_KEEP_WEEKS: variable(wholeNumber(0, 520).default(0), '8 (the newest backup of each of so many weeks)'),
  BACKUP_KEEP_MONTHS: variable(wholeNumber(0, 120).default(0), '12 (the newest backup of each of so many months)'),
  BACKUP_LOCK_DAYS: variable(wholeNumber(0, 3650).default(0), '30 (the bucket must have been made with object lock)'),
  BACKUP_VERIFY_DAYS: variable(wholeNumber(1, 365).default(7), '7 (days until the next full restore test)'),
})

/** What opens backups. Never on the server: who takes the server must not be able to read what it was. */
const opener = z.object({
  BACKUP_IDENTITY_FILE: variable(path, '~/.config/kgc/backup-identity.txt'),
})

/** Every variable of an operator's configuration, by what it is for. */
export const GROUPS = {
  ...{ blank, front, server, registry, release, notify, access, certificate },
  ...{ objectStore, backup, opener },
}
export type Front = z.infer<typeof front>
export type Server = z.infer<typeof server>
export type AccessSettings = z.infer<typeof access>
export type CertificateSettings = z.infer<typeof certificate>
export type ObjectStoreSettings = z.infer<typeof objectStore>
export type BackupSettings = z.infer<typeof backup>
