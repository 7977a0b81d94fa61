import { Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { sh } from '../shell.ts'
import { local } from '../when.ts'
import { FIRST_VOLUME, type Replacement } from './cluster.ts'
import type { Found } from './server.ts'

const CLUSTER = new RegExp(`^${FIRST_VOLUME}(-\\d{8}T\\d{6})?$`)

/** The clusters that do not serve, by their volumes, each with what it is. */
export function clustersAside({
  volume,
  volumes,
  replacements,
}: Found): { name: string; since: string; what: string }[] {
  return volumes
    .filter((name) => CLUSTER.test(name) && name !== volume)
    .map((name) => {
      const left = replacements.filter(({ was }) => was === name).at(-1)
      return left
        ? { name, since: left.at, what: `the whole cluster until it was replaced (${left.target})` }
        : { name, since: '', what: 'a cluster restored beside what serves, or left by a run that died' }
    })
}

/** The last restore to a moment that can still be undone. */
export function lastReplacement({ replacements, volumes }: Found): Replacement | undefined {
  const last = replacements.at(-1)
  return last && volumes.includes(last.was) ? last : undefined
}

export const describeReplacement = ({ at, target }: Replacement) =>
  `the last restore is that of the whole cluster, of ${local(new Date(at))} (${target})`

/** @throws Stop when a container has it: that of `--time WHEN --keep-side` */
export async function dropCluster(host: Host, volume: string): Promise<void> {
  const { stdout } = await host.probe(sh`docker ps -aq --filter ${`volume=${volume}`}`)
  if (stdout.trim())
    throw new Stop(`${volume} is in use: it runs beside what serves, to copy from.`, [
      'On the server: docker rm -f kgc-postgres-restore-1',
    ])
  await host.write(sh`docker volume rm ${volume} > /dev/null`)
}
