import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { TELLING_FILES, webhookFile } from '../alert.ts'
import { EXIT, messageOf, Stop } from '../errors.ts'
import { type ServerFile, serverText } from '../put-file.ts'
import type { CertificateSettings } from '../settings.ts'

export const CERTIFICATES = '/usr/local/sbin/kgc-certificates'
export const SETTINGS = '/etc/kgc/certificates/settings'
const DNS_TOKEN = '/etc/kgc/certificates/cloudflare.ini'

/** The sites beside the apex: nginx/templates has one server for each. */
export const SITES = ['crm', 'support', 'hr', 'grafana']
export const certificateNames = (domain: string) => [domain, ...SITES.map((site) => `${site}.${domain}`)]

/** Where the certificate comes from, as the server is to have it. */
export type WantedCertificate = {
  source: CertificateSettings['CERTIFICATE']
  files: ServerFile[]
  /** Files that belong to another source. */
  superfluous: string[]
  /** Debian packages that it takes. */
  packages: string[]
  /** Chain and key, when they are given as files. */
  pem?: string
}

/**
 * @throws Stop (exit 2) when certificate and key are given as files that cannot serve
 */
export function wantedCertificate(settings: CertificateSettings, webhook: string | undefined): WantedCertificate {
  const { CERTIFICATE: source, DOMAIN, ACME_SERVER, CLOUDFLARE_DNS_TOKEN: token } = settings
  const names = certificateNames(DOMAIN)
  const variables = { SOURCE: source, ACME_SERVER: source === 'files' ? '' : ACME_SERVER, NAMES: names.join(' ') }
  const files: ServerFile[] = [
    { path: CERTIFICATES, content: serverText('kgc-certificates'), mode: '755' },
    ...['service', 'timer'].map((kind) => ({
      path: `/etc/systemd/system/kgc-certificates.${kind}`,
      content: serverText(`kgc-certificates.${kind}`),
      mode: '644',
    })),
    ...TELLING_FILES,
    webhookFile(webhook),
    {
      path: SETTINGS,
      // Safe to quote so: config.ts lets no quote through.
      content: Object.entries(variables)
        .map(([name, value]) => `${name}='${value}'\n`)
        .join(''),
    },
    ...(source === 'dns' ? [{ path: DNS_TOKEN, content: `dns_cloudflare_api_token = ${token}\n` }] : []),
  ]
  return {
    source,
    files,
    superfluous: source === 'dns' ? [] : [DNS_TOKEN],
    packages: [
      'openssl',
      'curl',
      ...(source === 'files' ? [] : ['certbot']),
      ...(source === 'dns' ? ['python3-certbot-dns-cloudflare'] : []),
    ],
    ...(source === 'files' ? { pem: readPair(settings, names) } : {}),
  }
}

function readPair(settings: CertificateSettings, names: string[]): string {
  const [chain, key] = [settings.CERTIFICATE_FILE, settings.CERTIFICATE_KEY_FILE].map((file) =>
    readFileSync(file ?? '', 'utf8').trimEnd(),
  )
  const problems = pairProblems(chain ?? '', key ?? '', names, new Date())
  if (problems.length === 0) return `${chain}\n${key}\n`
  throw new Stop(
    `CERTIFICATE_FILE and CERTIFICATE_KEY_FILE cannot serve; nothing was changed:\n${problems.map((problem) => `  ${problem}`).join('\n')}`,
    ['Download the certificate in PEM format, its own part first, with the key that was made with it.'],
    EXIT.usage,
  )
}

/** What speaks against serving these names with this chain and key. */
export function pairProblems(chain: string, key: string, names: string[], now: Date): string[] {
  let certificate: X509Certificate
  try {
    certificate = new X509Certificate(chain)
  } catch (error) {
    return [`the certificate cannot be read: ${messageOf(error)}`]
  }
  const missing = names.filter((name) => !certificate.checkHost(name))
  return [
    ...(missing.length > 0 ? [`the certificate is not for ${missing.join(', ')}`] : []),
    ...(new Date(certificate.validTo) < now ? [`the certificate expired on ${certificate.validTo}`] : []),
    ...(new Date(certificate.validFrom) > now ? [`the certificate is not valid before ${certificate.validFrom}`] : []),
    ...keyProblems(certificate, key),
  ]
}

function keyProblems(certificate: X509Certificate, key: string): string[] {
  try {
    return certificate.checkPrivateKey(createPrivateKey(key)) ? [] : ['the key is not that of the certificate']
  } catch (error) {
    return [`the key cannot be read: ${messageOf(error)}`]
  }
}

/** What to type next, from what certbot said. */
export function remedies(said: string): string[] {
  const known: [RegExp, string][] = [
    [
      /rateLimited|too many (certificates|failed authorizations|new orders|requests)/i,
      "The authority limits how often one may ask (Let's Encrypt: 5 certificates for the same names in 7 days). Wait until the time that it names; the timer on the server tries again by itself.",
    ],
    [
      /zone_id|Cloudflare API|API token|Authentication error/i,
      'CLOUDFLARE_DNS_TOKEN: make a token with Zone:DNS:Edit for this zone at Cloudflare, My Profile, API Tokens.',
    ],
    [
      /acme:error:(unauthorized|connection|dns|tls)|Some challenges have failed/i,
      'The authority must reach http://DOMAIN/.well-known/acme-challenge/ of every name through Cloudflare: are the DNS records there, is port 80 open, is "Always Use HTTPS" off for this path? Or set CERTIFICATE=dns.',
    ],
    [
      /ConnectionError|Connection refused|NewConnectionError|timed out|Max retries|Name or service not known|Temporary failure/i,
      'The authority was not reached. Is it down (https://letsencrypt.status.io)? The timer on the server tries again by itself.',
    ],
  ]
  return known.filter(([pattern]) => pattern.test(said)).map(([, remedy]) => remedy)
}
