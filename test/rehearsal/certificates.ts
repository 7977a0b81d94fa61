import { existsSync, mkdirSync } from 'node:fs'
import { isIP } from 'node:net'
import { certificateNames } from '../../lib/certificates/certificates.ts'
import { chain, sh } from '../../lib/shell.ts'
import { local } from './engine.ts'
import { ACME, CLOUDFLARE_API, DOMAIN, inState, REGISTRY, S3 } from './names.ts'

const DAYS = 90

/** The rehearsal's own authority, and what it signed: one certificate for the site's hosts, one for the registry, one for the S3 server. */
export async function makeCertificates(): Promise<void> {
  for (const folder of ['registry', 'acme', 's3', 'docker']) mkdirSync(inState(folder), { recursive: true })
  const [key, ca] = [inState('ca.key'), inState('ca.pem')]
  if (!existsSync(ca)) {
    await local.read(
      sh`umask 077; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days ${DAYS} -subj ${'/CN=KGC rehearsal'} -keyout ${key} -out ${ca}`,
    )
  }
  await sign('site', certificateNames(DOMAIN))
  await sign('registry/tls', [REGISTRY.host.split(':')[0] ?? ''])
  await sign('acme/tls', [ACME.host, CLOUDFLARE_API])
  await sign('s3/tls', [S3.address])
  await sign('docker/tls', ['download.docker.com'])
}

async function sign(name: string, hosts: string[]): Promise<void> {
  const [key, request, certificate] = ['key', 'csr', 'crt'].map((kind) => inState(`${name}.${kind}`)) as [
    string,
    string,
    string,
  ]
  if (existsSync(certificate)) return
  // An address as a name, too: pgBackRest looks at names only.
  const kinds = (host: string) => (isIP(host) ? ['IP', 'DNS'] : ['DNS'])
  const names = `subjectAltName=${hosts.flatMap((host) => kinds(host).map((kind) => `${kind}:${host}`)).join(',')}`
  await local.read(
    chain(
      sh`umask 077`,
      sh`openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj ${`/CN=${hosts[0]}`} -addext ${names} -keyout ${key} -out ${request}`,
      sh`openssl x509 -req -in ${request} -CA ${inState('ca.pem')} -CAkey ${inState('ca.key')} -days ${DAYS} -copy_extensions copy -out ${certificate}`,
    ),
  )
}
