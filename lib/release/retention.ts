import type { Host } from '../host.ts'
import { type Command, quote, script, sh } from '../shell.ts'
import { goodVersions, type Images, type ReleaseRecord } from './release.ts'

/** Image references as name@digest that the server has, of the repositories that the records name. */
export async function imagesOnServer(host: Host, records: ReleaseRecord[]): Promise<string[]> {
  const repositories = [
    ...new Set(records.flatMap(({ images }) => Object.values(images ?? {})).map((image) => image.split('@')[0] ?? '')),
  ]
  if (repositories.length === 0) return []
  return (await host.read(listImages(repositories))).split('\n').filter(Boolean)
}

const listImages = (repositories: string[]): Command =>
  script(
    `for repository in ${repositories.map((name) => sh`${name}`.shell).join(' ')}; do docker images --digests --no-trunc --format '{{.Repository}}@{{.Digest}}' "$repository"; done`,
  )

/**
 * Which images may go: all that belong neither to the newest good releases nor to a color.
 * @param keep how many good releases stay; the customer's rollback needs at least the one before
 * @param inUse images of the release that serves and of the one before it
 */
export function imagesToRemove(onServer: string[], records: ReleaseRecord[], keep: number, inUse: string[]): string[] {
  const kept = goodVersions(records)
    .slice(0, keep)
    .flatMap((version) => records.filter((run) => run.version === version && run.outcome === 'good'))
    .flatMap(({ images }) => Object.values(images))
  const safe = new Set([...kept, ...inUse])
  return onServer.filter((image) => !safe.has(image))
}

/** Removes images with all their names, each on its own: one that a container still uses is not a failure, Docker keeps it. */
export const removeImages = (images: string[]): Command =>
  script(`
for image in ${images.map(quote).join(' ')}; do
  docker image inspect -f '{{range .RepoTags}}{{println .}}{{end}}{{range .RepoDigests}}{{println .}}{{end}}' "$image" | grep "^\${image%@*}[:@]" | xargs -r docker rmi > /dev/null 2>&1 || true
done`)

/** True when both images of a release are there, so that it can start without the registry. */
export const isOnServer = (onServer: string[], images: Images | undefined) =>
  images !== undefined && Object.values(images).every((image) => onServer.includes(image))
