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

/** apt and dpkg use one core, and wait for the network and the disk: with two at once a bare machine was ready in 8 min 0 s, not 9 min 38 s (2 cores). */
const AT_ONCE = 3

/**
 * Builds every image whose sources changed since the last time.
 * @param machine those of the virtual machine as well
 */
export async function buildImages(log: Log, { machine = false } = {}): Promise<void> {
  const wanted = images.filter((image) => (image.system ?? SYSTEM) === SYSTEM && (machine || !image.machine))
  const suites = [...new Set(wanted.flatMap((image) => image.suites))]
  await makeBases(log, suites)
  const found = await inspect([...suites.map(baseName), ...wanted.map(localName)])
  const ids = new Map([...found].map(([name, { id }]) => [name, Promise.resolve(id)]))
  // What an image starts from comes before it in the list, so it is built, or being built, when its turn comes.
  await inLanes(wanted, (image) => {
    const id = bringUpToDate(log, image, ids, found.get(localName(image)))
    ids.set(localName(image), id)
    return id
  })
}

/** Works on all of them, in their order. */
async function inLanes<T>(items: T[], work: (item: T) => Promise<unknown>): Promise<void> {
  const queue = [...items]
  const lane = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item)
  }
  await Promise.all(Array.from({ length: AT_ONCE }, lane))
}

/** @returns the image's id, of which those depend that start from it */
async function bringUpToDate(log: Log, image: Image, ids: Map<string, Promise<string>>, found?: Found) {
  const context = await prepareContext(image)
  try {
    const parents = await Promise.all(parentsOf(image, context).map((name) => ids.get(name)))
    const hash = hashOf(image, parents, context)
    if (found?.hash === hash) return found.id
    return await log.step(`Image ${image.name}`, () => buildImage(image, context, hash))
  } finally {
    rmSync(context, { recursive: true })
  }
}

/** The images that a Dockerfile starts from. */
const parentsOf = ({ buildArgs }: Image, context: string): string[] =>
  [...readFileSync(join(context, 'Dockerfile'), 'utf8').matchAll(/^FROM (\S+)/gm)].map(([, name = '']) =>
    name.replace(/\$\{(\w+)\}/, (_, arg) => buildArgs?.[arg] ?? ''),
  )

/** Pushes what the server pulls into the registry, unless the same is there. */
export async function pushImages(): Promise<void> {
  const wanted = images.filter(({ where }) => where !== 'here')
  const found = await inspect(wanted.map(localName))
  await inLanes(wanted, async (image) => {
    if (found.get(localName(image))?.digests.includes((await registryDigest(image)) ?? 'nothing')) return
    const name = `${PUSH_ADDRESS}/${registryPath(image)}`
    await docker(sh`tag ${localName(image)} ${name}`)
    await docker(sh`push -q ${name}`, 300)
  })
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

type Found = { id: string; hash: string; digests: string }

/** What is known of each image that is there, by name. One question for all: 40 of them took 2 s. */
async function inspect(names: string[]): Promise<Map<string, Found>> {
  const format = `{{.Id}} {{index .Config.Labels "${LABEL}"}} {{json .RepoDigests}} {{json .RepoTags}}`
  const { stdout } = await local.probe(sh`docker image inspect -f ${format} ${names}`)
  const found = new Map<string, Found>()
  for (const line of stdout.trim().split('\n')) {
    const [id = '', hash = '', digests = '', tags = '[]'] = line.split(' ')
    for (const tag of JSON.parse(tags) as string[]) found.set(tag.replace(/:latest$/, ''), { id, hash, digests })
  }
  return found
}

async function makeBases(log: Log, suites: string[]): Promise<void> {
  const found = await inspect(suites.map(baseName))
  const missing = suites.filter((suite) => !found.has(baseName(suite)))
  if (missing.length > 0 && (await local.probe(sh`command -v debootstrap`)).code !== 0)
    await install(log, ['debootstrap'])
  const make = (suite: string) => log.step(`Base image of ${suite}`, () => makeBase(log, suite))
  await Promise.all(missing.filter((suite) => !isUbuntu(suite)).map(make))
  // Ubuntu's key comes out of a package of Debian.
  for (const suite of missing.filter(isUbuntu)) await make(suite)
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

function hashOf(image: Image, parents: (string | undefined)[], context: string): string {
  const hash = createHash('sha256').update(JSON.stringify(image.buildArgs ?? {}))
  for (const name of readdirSync(context, { recursive: true }).map(String).sort()) {
    const file = join(context, name)
    const { mode } = statSync(file)
    if (statSync(file).isFile()) hash.update(`${name} ${mode}\n`).update(readFileSync(file))
  }
  for (const parent of parents) hash.update(`${parent}\n`)
  return hash.digest('hex').slice(0, 16)
}

/** Without BuildKit: the client's plugin for it is missing on many machines, and every client still has the old builder. */
async function buildImage(image: Image, context: string, hash: string): Promise<string> {
  const args = Object.entries(image.buildArgs ?? {}).flatMap(([name, value]) => ['--build-arg', `${name}=${value}`])
  const id = await local.read(
    sh`DOCKER_BUILDKIT=0 docker build --quiet --rm --force-rm --label ${`${LABEL}=${hash}`} ${args} --tag ${localName(image)} ${context}`,
    { timeout: BUILD_SECONDS },
  )
  return id.split('\n').pop() ?? ''
}
