import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { Cidr } from '../cidr.ts'
import { EXIT, messageOf, Stop } from '../errors.ts'
import type { AccessSettings } from '../settings.ts'

/** The prober of compose/operations.yaml, which asks for the sites from inside. */
const BLACKBOX = '172.20.7.12'

/** The names of the files; nginx/nginx.conf and nginx/snippets/site.conf include them where they are there. */
export const ORIGIN_FILES = ['origin-ca.pem', 'origin-http.conf', 'origin-site.conf'] as const

/**
 * Authenticated origin pulls: who asks for a site must show a certificate of our own authority, which only our zone at
 * Cloudflare has. The firewall lets in whatever comes from Cloudflare's addresses, and anybody can point a zone or a worker of
 * his own at them. `optional` and a rule of our own rather than `on`, as those whom the firewall lets in past Cloudflare, and
 * the prober inside, have no certificate.
 * @param ca the authority's certificate as PEM; without one no certificate is wanted
 * @param extra who may come without
 * @returns the content of each file that nginx is to have
 * @throws Stop when it is not one authority's certificate, or one that others can get certificates from
 */
export function originPullFiles(ca: string | undefined, extra: Cidr[]): Partial<Record<string, string>> {
  if (ca === undefined) return {}
  checkAuthority(ca)
  return {
    'origin-ca.pem': ca,
    'origin-http.conf': `ssl_client_certificate /etc/nginx/state/origin-ca.pem;
ssl_verify_client optional;
geo $realip_remote_addr $certificate_wanted {
    default 1;
${[BLACKBOX, ...extra.map(({ text }) => text)].map((source) => `    ${source} 0;\n`).join('')}}
map $certificate_wanted:$ssl_client_verify $certificate_missing {
    default 1;
    ~^0: 0;
    1:SUCCESS 0;
}
`,
    'origin-site.conf': 'if ($certificate_missing) {\n    return 403;\n}\n',
  }
}

/** `originPullFiles` for the configured authority. */
export const readOriginPull = ({ ORIGIN_PULL_CA_FILE: file, EXTRA_HTTPS_SOURCES }: AccessSettings) =>
  originPullFiles(file === undefined ? undefined : readFileSync(file, 'utf8'), EXTRA_HTTPS_SOURCES)

function checkAuthority(pem: string): void {
  if ((pem.match(/-----BEGIN/g) ?? []).length !== 1 || /PRIVATE KEY/.test(pem))
    throw refusal('is not one certificate as PEM')
  const certificate = read(pem)
  if (!certificate.ca) throw refusal('is not the certificate of an authority')
  if (Date.parse(certificate.validTo) < Date.now()) throw refusal(`expired on ${certificate.validTo}`)
  // Every customer's requests carry a certificate of that one: https://developers.cloudflare.com/ssl/origin-configuration/authenticated-origin-pull/
  if (/cloudflare/i.test(certificate.subject))
    throw refusal("is Cloudflare's own, whose certificates every customer of Cloudflare shows")
}

function read(pem: string): X509Certificate {
  try {
    return new X509Certificate(pem)
  } catch (error) {
    throw refusal(`cannot be read: ${messageOf(error)}`)
  }
}

const refusal = (why: string) =>
  new Stop(
    `ORIGIN_PULL_CA_FILE ${why}. Nothing was changed.`,
    ['See RUNBOOK.md, "Only through our own Cloudflare".'],
    EXIT.usage,
  )
