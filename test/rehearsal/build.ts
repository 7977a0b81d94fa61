import { createHash } from 'node:crypto'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build } from 'esbuild'
import type { Log } from '../../lib/log.ts'
import { script, sh } from '../../lib/shell.ts'
import { docker, install, local } from './engine.ts'
import { type Image, images } from './images/images.ts'
import { IMAGES, IMAGES_DIR, PREFIX, PROJECT_DIR, PUSH_ADDRESS } from './names.ts'
import { isUbuntu, SYSTEM } from './system.ts'

const LABEL = 'kgc.rehearsal.hash'
const BUILD_SECONDS = 900

/** Builds every image whose sources changed since the last time. */
export async function buildImages(log: Log): Promise<void> {
  const wanted = images.filter(({ system = SYSTEM }) => system === SYSTEM)
  for (const suite of [...new Set(wanted.flatMap(({ suites }) => suites))]) {
    if (!(await labelOf(baseName(suite)))) await log.step(`Base image of ${suite}`, () => makeBase(log, suite))
  }
  for (const image of wanted) {
    const context = await prepareContext(image)
    try {
      const hash = await hashOf(image, context)
      if ((await labelOf(localName(image))) !== hash)
        await log.step(`Image ${image.name}`, () => buildImage(image, context, hash))
    } finally {
      rmSync(context, { recursive: true })
    }
  }
}

/** Pushes what the server pulls into the registry, unless the same is there. */
export async function pushImages(): Promise<void> {
  for (const image of images.filter(({ where }) => where !== 'here')) {
    const name = `${PUSH_ADDRESS}/${registryPath(image)}`
    await docker(sh`tag ${localName(image)} ${name}`)
    const digests = await docker(sh`image inspect -f ${'{{json .RepoDigests}}'} ${name}`)
    if (!digests.includes((await registryDigest(image)) ?? 'nothing')) await docker(sh`push -q ${name}`, 300)
  }
}

/** The name of an image on this machine: never one that its owner uses too. */
export const localName = ({ where, name }: Image) => (where === 'here' ? name : `${IMAGES}/${where}/${name}`)
const baseName = (suite: string) => `${IMAGES}/${isUbuntu(suite) ? 'ubuntu' : 'debian'}:${suite}`

/** Docker Hub keeps its own images under library/. */
function registryPath({ where, name }: Image): string {
  if (where === 'registry') return `kgc/${name}`
  return name.includes('/') ? name : `library/${name}`
}

async function registryDigest(image: Image): Promise<string | undefined> {
  const [path = '', tag = ''] = registryPath(image).split(':')
  const answer = await fetch(`http://${PUSH_ADDRESS}/v2/${path}/manifests/${tag}`, {
    method: 'HEAD',
    headers: { accept: 'application/vnd.docker.distribution.manifest.v2+json' },
    signal: AbortSignal.timeout(10_000),
  })
  return answer.headers.get('docker-content-digest') ?? undefined
}

async function labelOf(name: string): Promise<string> {
  const { stdout } = await local.probe(sh`docker image inspect -f ${`{{index .Config.Labels "${LABEL}"}}`} ${name}`)
  return stdout.trim()
}

/** Docker Hub's Debian or Ubuntu where it can be reached, else a fresh one made from their packages. */
async function makeBase(log: Log, suite: string): Promise<void> {
  const label = sh`--change ${`LABEL ${LABEL}=base`}`
  const fromHub = sh`docker create ${isUbuntu(suite) ? `ubuntu:${suite}` : `debian:${suite}-slim`}`
  const pulled = await local.probe(fromHub, { timeout: 120 })
  if (pulled.code === 0) {
    const container = pulled.stdout.trim().split('\n').pop() ?? ''
    await local.read(sh`docker export ${container} | docker import ${label} - ${baseName(suite)}`, { timeout: 120 })
    await docker(sh`rm ${container}`)
    return
  }
  if ((await local.probe(sh`command -v debootstrap`)).code !== 0) await install(log, ['debootstrap'])
  log.say('  Docker Hub is out of reach; made with debootstrap')
  await local.read(
    script(`
tree=$(mktemp -d); trap 'rm -rf "$tree" "$tree".*' EXIT
${isUbuntu(suite) ? ubuntuTree(suite) : debianTree(suite)}
rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/*
tar -C "$tree" -c . | docker import ${label.shell} - ${baseName(suite)}
`),
    { timeout: BUILD_SECONDS },
  )
}

const TREE_OR_END = `"$tree.log" 2>&1 || { tail -n 20 "$tree.log"; exit 1; }`
/** A debootstrap older than the suite has no script for it; that of the rolling release fits every one. */
const debianTree = (suite: string) =>
  `debootstrap --variant=minbase ${suite} "$tree" '' /usr/share/debootstrap/scripts/sid > ${TREE_OR_END}`

/** Ubuntu's key is in a package of Debian 13. What was released since is in suites of their own. */
const ubuntuTree = (suite: string) => `
docker run --rm ${baseName('trixie')} sh -c '
  { apt-get -o Acquire::Check-Valid-Until=false update && cd /tmp && apt-get download ubuntu-keyring; } > /dev/null &&
  dpkg-deb --fsys-tarfile ubuntu-keyring_*.deb | tar -xO ./usr/share/keyrings/ubuntu-archive-keyring.gpg' > "$tree.gpg" || exit 1
debootstrap --variant=minbase --components=main,universe --keyring="$tree.gpg" --force-check-gpg ${suite} "$tree" '' \
  /usr/share/debootstrap/scripts/gutsy > ${TREE_OR_END}
for part in updates security; do sed "s/ ${suite} / ${suite}-$part /p;d" "$tree/etc/apt/sources.list"; done > "$tree.more"
cat "$tree.more" >> "$tree/etc/apt/sources.list"`

/** The image's folder, and its program bundled into one file. */
async function prepareContext(image: Image): Promise<string> {
  const context = mkdtempSync(join(tmpdir(), `${PREFIX}-`))
  cpSync(join(IMAGES_DIR, image.folder), context, { recursive: true })
  if (image.standIn) {
    await build({
      entryPoints: [join(PROJECT_DIR, 'test/rehearsal/stand-in', image.standIn)],
      outfile: join(context, 'app.cjs'),
      bundle: true,
      platform: 'node',
      target: 'node20',
      format: 'cjs',
      external: ['pg-native'],
      logLevel: 'error',
    })
  }
  if (image.bundles) {
    const out = join(context, 'backup.mjs')
    await local.read(sh`cd ${PROJECT_DIR} && npm run --silent build:backup -- ${`--outfile=${out}`} --log-level=error`)
  }
  return context
}

async function hashOf(image: Image, context: string): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(image.buildArgs ?? {}))
  for (const name of readdirSync(context, { recursive: true }).map(String).sort()) {
    const file = join(context, name)
    const { mode } = statSync(file)
    if (statSync(file).isFile()) hash.update(`${name} ${mode}\n`).update(readFileSync(file))
  }
  const parents = [...readFileSync(join(context, 'Dockerfile'), 'utf8').matchAll(/^FROM (\S+)/gm)].map(
    ([, name = '']) => name.replace(/\$\{(\w+)\}/, (_, arg) => image.buildArgs?.[arg] ?? ''),
  )
  for (const parent of parents) {
    hash.update((await local.probe(sh`docker image inspect -f ${'{{.Id}}'} ${parent}`)).stdout)
  }
  return hash.digest('hex').slice(0, 16)
}

/** Without BuildKit: the client's plugin for it is missing on many machines, and every client still has the old builder. */
async function buildImage(image: Image, context: string, hash: string): Promise<void> {
  const args = Object.entries(image.buildArgs ?? {}).flatMap(([name, value]) => ['--build-arg', `${name}=${value}`])
  await local.read(
    sh`DOCKER_BUILDKIT=0 docker build --quiet --rm --force-rm --label ${`${LABEL}=${hash}`} ${args} --tag ${localName(image)} ${context}`,
    { timeout: BUILD_SECONDS },
  )
}
