import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { certificateNames, pairProblems, remedies, wantedCertificate } from '../../lib/certificates/certificates.ts'
import { validate } from '../../lib/config.ts'
import { PROJECT_DIR } from '../rehearsal/names.ts'

const test = suite('certificates')

const folder = mkdtempSync(join(tmpdir(), 'kgc-certificates-'))
function makePair(name: string, names: string[], args: string[] = []) {
  const [crt, key] = [join(folder, `${name}.crt`), join(folder, `${name}.key`)]
  const subject = ['-subj', '/CN=test', '-addext', `subjectAltName=${names.map((host) => `DNS:${host}`).join(',')}`]
  const how = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-days', '90', ...args]
  execFileSync('openssl', [...how, ...subject, '-keyout', key, '-out', crt], { stdio: 'ignore' })
  return { crt, key, chain: readFileSync(crt, 'utf8'), secret: readFileSync(key, 'utf8') }
}
const NAMES = certificateNames('kgc-erp.hu')
const good = makePair('good', NAMES, ['-nodes'])
const wildcard = makePair('wildcard', ['kgc-erp.hu', '*.kgc-erp.hu'], ['-nodes'])
const locked = makePair('locked', NAMES, ['-passout', 'pass:secret'])

const settings = (env: Record<string, string> = {}) => validate({ DOMAIN: 'kgc-erp.hu', ...env }, ['certificate'])
const wanted = (env: Record<string, string> = {}) => wantedCertificate(settings(env).config.certificate, undefined)

test('are for the apex and for every site that nginx has', () => {
  const templates = ['kgc', 'vendors']
    .map((name) => readFileSync(join(PROJECT_DIR, `nginx/templates/${name}.conf.template`), 'utf8'))
    .join('')
  const served = [...templates.matchAll(/^ {4}server_name (\S+);$/gm)].map(([, name]) => name)
  assert.equal(
    served.map((name) => name?.replace(/\$\{DOMAIN\}$/, 'kgc-erp.hu')),
    NAMES,
  )
})

test("come from Let's Encrypt through port 80 unless configured otherwise", () => {
  assert.equal(settings().problems, [])
  const { source, packages, files, superfluous } = wanted()
  assert.is(source, 'http')
  assert.equal(packages, ['openssl', 'curl', 'certbot'])
  assert.equal(superfluous, ['/etc/kgc/certificates/cloudflare.ini'])
  const text = files.find(({ path }) => path === '/etc/kgc/certificates/settings')?.content
  assert.match(text ?? '', /^ACME_SERVER='https:\/\/acme-v02\.api\.letsencrypt\.org\/directory'$/m)
})

test('the token for Cloudflare is in a file of root alone, and only there', () => {
  const token = 'sentinel-token'
  const { files, superfluous } = wanted({ CERTIFICATE: 'dns', CLOUDFLARE_DNS_TOKEN: token })
  const holding = files.filter(({ content }) => content.includes(token))
  assert.equal(
    holding.map(({ path, mode = '600' }) => `${path} ${mode}`),
    ['/etc/kgc/certificates/cloudflare.ini 600'],
  )
  assert.equal(superfluous, [])
})

test('what a source needs is asked for by name', () => {
  assert.match(settings({ CERTIFICATE: 'dns' }).problems.join('\n'), /^CLOUDFLARE_DNS_TOKEN is not set\. Example: /)
  const { problems } = settings({ CERTIFICATE: 'files' })
  assert.match(problems.join('\n'), /^CERTIFICATE_FILE is not set.*\nCERTIFICATE_KEY_FILE is not set/)
  assert.match(settings({ CERTIFICATE: 'acme' }).problems.join('\n'), /CERTIFICATE is neither http, dns nor files/)
  const wrong = ['http://ca.example/dir', "https://ca.example/'; id; '", 'ca.example']
  for (const address of wrong) assert.is(settings({ ACME_SERVER: address }).problems.length, 1, address)
})

test('given as files they are one text, chain first', () => {
  const { pem, packages } = wanted({ CERTIFICATE: 'files', CERTIFICATE_FILE: good.crt, CERTIFICATE_KEY_FILE: good.key })
  assert.is(pem, good.chain + good.secret)
  assert.equal(packages, ['openssl', 'curl'])
})

test('a pair that cannot serve is refused, with every reason', () => {
  const now = new Date()
  assert.equal(pairProblems(good.chain, good.secret, NAMES, now), [])
  assert.equal(pairProblems(wildcard.chain, wildcard.secret, NAMES, now), [])
  const cases: [RegExp, string, string, string[], Date][] = [
    [/the key is not that of the certificate/, good.chain, wildcard.secret, NAMES, now],
    [/the key cannot be read/, locked.chain, locked.secret, NAMES, now],
    [/the key cannot be read/, good.chain, '', NAMES, now],
    [/the certificate cannot be read/, good.secret, good.secret, NAMES, now],
    [/is not for crm\.other\.hu, /, good.chain, good.secret, certificateNames('other.hu').slice(1), now],
    [/expired on/, good.chain, good.secret, NAMES, new Date(now.getTime() + 91 * 86_400_000)],
    [/is not valid before/, good.chain, good.secret, NAMES, new Date(now.getTime() - 86_400_000)],
  ]
  for (const [words, ...pair] of cases) assert.match(pairProblems(...pair).join('\n'), words)
  assert.throws(
    () => wanted({ CERTIFICATE: 'files', CERTIFICATE_FILE: good.crt, CERTIFICATE_KEY_FILE: wildcard.key }),
    /nothing was changed:\n {2}the key is not that/,
  )
})

test('what certbot says leads to what to do', () => {
  const cases: [string, RegExp][] = [
    ['Error: urn:ietf:params:acme:error:rateLimited :: too many certificates (5) already issued', /limits how often/],
    ['requests.exceptions.ConnectionError: Max retries exceeded', /was not reached/],
    ['Error determining zone_id: 9109 Invalid access token', /CLOUDFLARE_DNS_TOKEN/],
    ['Some challenges have failed.', /Always Use HTTPS/],
  ]
  for (const [text, remedy] of cases) assert.match(remedies(text).join('\n'), remedy)
  assert.equal(remedies('anything else'), [])
})

test.run()
