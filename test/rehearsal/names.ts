import { mkdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Everything the rehearsal makes on the machine's Docker carries this name, and nothing else is touched. */
export const PREFIX = 'kgc-rehearsal'
/** Images are for every checkout on the machine. */
export const IMAGES = 'kgc-rehearsal'

export const PROJECT_DIR = dirname(dirname(dirname(fileURLToPath(import.meta.url))))
export const STATE_DIR = join(PROJECT_DIR, '.rehearsal')
export const IMAGES_DIR = join(PROJECT_DIR, 'test/rehearsal/images')
export const inState = (name: string) => join(STATE_DIR, name)
export const makeStateDir = () => mkdirSync(STATE_DIR, { recursive: true, mode: 0o700 })

/** A range kept for documentation (RFC 5737), on networks without a way out. `edge` plays Cloudflare's addresses. */
export const NETWORKS = {
  main: { name: PREFIX, subnet: '198.51.100.0/25' },
  edge: { name: `${PREFIX}-edge`, subnet: '198.51.100.128/25' },
}
export const SERVER = { container: `${PREFIX}-server`, address: '198.51.100.10', edgeAddress: '198.51.100.140' }
export const REGISTRY = {
  container: `${PREFIX}-registry`,
  address: '198.51.100.20',
  host: 'registry.kgc.test:5000',
  user: 'deploy',
}
export const SINK = { container: `${PREFIX}-sink`, address: '198.51.100.30', url: 'http://198.51.100.30:8080' }
/** The mirror of Debian's packages that the server's apt knows. */
export const PACKAGES = { container: `${PREFIX}-packages`, address: '198.51.100.35' }
/** Debian 12 on a virtual machine, and what it reaches of the internet; there while their tests run. */
export const MACHINE = { container: `${PREFIX}-machine`, address: '198.51.100.12' }
export const MACHINE_PACKAGES = { container: `${PREFIX}-machine-packages`, address: '198.51.100.36' }
/** The certificate authority, there while its test runs. `api.cloudflare.com` leads to it, too: it keeps the names' records. */
export const ACME = { container: `${PREFIX}-acme`, address: '198.51.100.50', host: 'acme.kgc.test' }
export const CLOUDFLARE_API = 'api.cloudflare.com'
/** A real S3 server; its address is in its certificate. */
export const S3 = {
  container: `${PREFIX}-s3`,
  address: '198.51.100.40',
  endpoint: 'https://198.51.100.40',
  bucket: 'kgc-backup',
}
/** The registry's open door, through which this machine pushes. Docker needs no TLS on loopback. */
export const PUSH_ADDRESS = '127.0.0.1:25001'
/** The machine that runs the rehearsal, as the server sees it. */
export const RUNNER_ADDRESS = '198.51.100.1'
export const DOMAIN = 'erp.kgc.test'
