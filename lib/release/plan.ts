import type { Readable } from 'node:stream'
import { compose } from '../compose.ts'
import type { Host } from '../host.ts'
import { ROOT } from '../layout.ts'
import { type Command, script, sh } from '../shell.ts'
import { hasCommit } from './checkout.ts'
import type { Images } from './release.ts'
import type { Survey } from './survey.ts'

/** A service that does not run as its files say, and why. */
export type Drift = { service: string; why: 'definition' | 'files' }

/**
 * The services, apart from the colors, that differ from the files of the server's checkout: their definition (Compose
 * labels each container with the hash of it) or a mounted file that is younger than the container.
 * nginx is left out as to its files: every switch makes it read them.
 */
export async function findDrift(host: Host): Promise<Drift[]> {
  return parseDrift(await host.read(driftCommand, { timeout: 60 }))
}

const driftCommand: Command = script(`
echo '@@wanted'; ${compose(sh`config --hash ${'*'}`).shell}
echo '@@running'
docker ps -a --filter label=com.docker.compose.project=kgc --filter label=com.docker.compose.oneoff=False \\
  --format '{{.Label "com.docker.compose.service"}} {{.Label "com.docker.compose.config-hash"}}'
echo '@@younger'
cd ${ROOT}
docker ps -q --filter label=com.docker.compose.project=kgc | xargs -r docker inspect \\
  --format '{{$s := index .Config.Labels "com.docker.compose.service"}}{{$t := .State.StartedAt}}{{range .Mounts}}{{if eq .Type "bind"}}{{$s}} {{$t}} {{.Source}}{{"\\n"}}{{end}}{{end}}' |
while read -r service started source; do
  case "$source" in ${ROOT}/compose/* | ${ROOT}/monitoring/*)
    [ -z "$(find "$source" -type f -newermt "$started" | head -n 1)" ] || echo "$service" ;;
  esac
done
`)

/** Neither a color nor a check: those are started when they are needed. */
const isStack = (service: string) => !/^kgc-(backend|frontend)-|^nginx-check$/.test(service)

export function parseDrift(output: string): Drift[] {
  const [, wanted = '', running = '', younger = ''] = output.split(/^@@\w+$/m)
  const pairs = (text: string) =>
    new Map(
      text
        .split('\n')
        .filter(Boolean)
        .map((line) => line.trim().split(/\s+/) as [string, string]),
    )
  const hashes = pairs(running)
  const drift = [...pairs(wanted)]
    .filter(([service, hash]) => isStack(service) && hashes.has(service) && hashes.get(service) !== hash)
    .map(([service]): Drift => ({ service, why: 'definition' }))
  const files = [...new Set(younger.split('\n').filter(Boolean))]
    .filter((service) => isStack(service) && !drift.some((one) => one.service === service))
    .map((service): Drift => ({ service, why: 'files' }))
  return [...drift, ...files].sort((a, b) => a.service.localeCompare(b.service))
}

export const describeDrift = (drift: Drift[]) =>
  drift.map(
    ({ service, why }) =>
      `  ${service}: ${why === 'definition' ? 'its definition changed, it will be recreated' : 'a file it reads changed, it will be restarted'}`,
  )

/** Makes the services run as their files say. */
export function applyDrift(drift: Drift[], waitSeconds: number): Command[] {
  const recreate = drift.filter(({ why }) => why === 'definition').map(({ service }) => service)
  const restart = drift.filter(({ why }) => why === 'files').map(({ service }) => service)
  return [
    ...(recreate.length > 0 ? [compose(sh`up -d --wait --wait-timeout ${waitSeconds} ${recreate}`)] : []),
    ...(restart.length > 0 ? [compose(sh`restart ${restart}`)] : []),
  ]
}

/**
 * The services whose definition another set of files would change. Both sets are looked at in the same place, a
 * temporary one: the hash of a service covers the absolute paths of its mounts.
 * @param files `compose`, `nginx` and `monitoring` as a tar archive, or a commit that the server has
 */
export async function changedServices(host: Host, files: Readable | string): Promise<Drift[]> {
  const output =
    typeof files === 'string'
      ? await host.read(sh`git -C ${ROOT} archive ${files} compose nginx monitoring | sh -c ${compareFiles.shell}`)
      : await host.read(compareFiles, { input: files, timeout: 60 })
  const services = output.split('\n').filter((name) => name && isStack(name))
  return services.map((service): Drift => ({ service, why: 'definition' }))
}

const compareFiles: Command = script(`
set -e
next=$(mktemp -d)
trap 'rm -rf "$next"' EXIT
cd "$next"
for shared in .env state certs secrets; do ln -s ${ROOT}/$shared $shared; done
cp -r ${ROOT}/compose ${ROOT}/nginx ${ROOT}/monitoring .
${compose(sh`config --hash ${'*'}`, '.').shell} | sort > .before
rm -r compose nginx monitoring
tar -x
${compose(sh`config --hash ${'*'}`, '.').shell} | sort > .after
comm -13 .before .after | cut -d ' ' -f 1
`)

export const mergeDrift = (now: Drift[], planned: Drift[]): Drift[] =>
  [...now.filter(({ service }) => !planned.some((one) => one.service === service)), ...planned].sort((a, b) =>
    a.service.localeCompare(b.service),
  )

/** From which release to which, by the digests of their images. */
export function describePlan({ active, colorImages }: Survey, version: string, images: Images): string {
  return [
    `# release ${active?.version ?? 'none'} -> ${version}`,
    ...(active ? colorImages[active.color].map((image) => `# - ${image}`) : []),
    ...Object.values(images).map((image) => `# + ${image}`),
  ].join('\n')
}

/**
 * What another commit changes in the files that the server runs, as a diff.
 * @param host where there is a repository that has that commit
 */
export async function diffFiles(host: Host, from: string, to: string, repository = '.'): Promise<string> {
  if (from === to) return ''
  if (from === '' || !(await hasCommit(host, repository, from))) {
    return `(this checkout does not have the server's commit ${from || 'yet: it has none'}, so there is no diff)`
  }
  return host.read(sh`git -C ${repository} diff ${from} ${to} -- compose nginx monitoring`)
}
