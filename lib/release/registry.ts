import { Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { type Command, quote, script, sh } from '../shell.ts'
import type { Images } from './release.ts'

export type RegistryLogin = { REGISTRY: string; REGISTRY_USER: string; REGISTRY_PASSWORD: string }

const imageNames = (registry: string, version: string): Images => ({
  backend: `${registry}/backend:${version}`,
  frontend: `${registry}/frontend:${version}`,
})

/** Logs the server's Docker in. The password comes on stdin. */
export const login = ({ REGISTRY, REGISTRY_USER }: RegistryLogin): Command =>
  sh`docker login --username ${REGISTRY_USER} --password-stdin ${REGISTRY.split('/')[0] ?? ''}`

/**
 * Asks the server's Docker engine which digests the tags of a release name now, so that what was checked is what
 * starts, and so that it is known before anything is pulled that the release exists.
 * @throws Stop that names each image that the registry does not have, or says that the login was refused
 */
export async function resolveDigests(host: Host, registry: RegistryLogin, version: string): Promise<Images> {
  const names = imageNames(registry.REGISTRY, version)
  const output = await host.read(askDigests(Object.values(names)), { input: `${authHeader(registry)}\n`, timeout: 40 })
  const answers = output.split('\n')
  const problems: string[] = []
  const pinned = Object.entries(names).map(([key, name], index) => {
    const [status = '', ...body] = (answers.find((line) => line.startsWith(`${index} `)) ?? '').split(' ').slice(1)
    const digest = /"digest":\s?"(sha256:[0-9a-f]{64})"/.exec(body.join(' '))?.[1]
    if (status !== '200' || !digest) problems.push(`${name}: ${registryProblem(status, body.join(' '))}`)
    return [key, `${name.replace(/:[^:/]+$/, '')}@${digest}`]
  })
  if (problems.length > 0) {
    throw new Stop(`The registry does not give release ${version}:\n${problems.map((p) => `  ${p}`).join('\n')}`, [
      'Was the version built and pushed? Are REGISTRY, REGISTRY_USER and REGISTRY_PASSWORD right?',
    ])
  }
  return Object.fromEntries(pinned) as Images
}

/** The engine's own API: no client command prints the digest of a tag without pulling it. Asked side by side. */
const askDigests = (names: string[]): Command =>
  script(`
read -r header
ask() {
  printf '%s\\n' "$header" | curl -s --max-time 30 --unix-socket /var/run/docker.sock -H @- \\
    -w ' %{http_code}' "http://localhost/distribution/$2/json" | tr -d '\\n' | sed "s/^\\(.*\\) \\([0-9]*\\)$/$1 \\2 \\1\\n/"
}
${names.map((name, index) => `ask ${index} ${quote(name)} &`).join('\n')}
wait
`)

/** The engine wants the URL alphabet with its padding, which Node's own 'base64url' leaves out. */
function authHeader({ REGISTRY_USER, REGISTRY_PASSWORD }: RegistryLogin): string {
  const credentials = JSON.stringify({ username: REGISTRY_USER, password: REGISTRY_PASSWORD })
  const base64 = Buffer.from(credentials).toString('base64').replaceAll('+', '-').replaceAll('/', '_')
  return `X-Registry-Auth: ${base64}`
}

function registryProblem(status: string, body: string): string {
  if (status === '401' || status === '403' || /unauthorized|denied/i.test(body)) return 'the login was refused'
  if (status === '404' || /manifest unknown|not found/i.test(body)) return 'there is no such tag'
  return `${/"message":"((?:[^"\\]|\\.)*)"/.exec(body)?.[1] ?? 'no answer'} (HTTP ${status || 'none'})`
}

/**
 * Pulls both images at once. What is already there by digest is not asked for again. Each is tagged with its version as
 * well: an image without a tag goes with the next `docker image prune`.
 */
export const pullImages = ({ backend, frontend }: Images, version: string): Command =>
  script(`
pull() {
  docker image inspect "$1" > /dev/null 2>&1 || docker pull -q "$1" || return
  docker tag "$1" "\${1%@*}:${version}"
}
pull ${quote(backend)} & backend=$!
pull ${quote(frontend)} & frontend=$!
wait $backend && wait $frontend
`)
