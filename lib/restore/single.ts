import type { Readable } from 'node:stream'
import type { Manifest, Stored } from '../backup/manifest.ts'
import type { Host } from '../host.ts'
import { type Command, quote, script } from '../shell.ts'
import { BACKUP_SERVICE } from './server.ts'
import type { Exchange } from './swap.ts'

/** What has a volume of its own that one program writes: restored by itself, not with the databases. */
export type SingleName = 'queue' | 'grafana'

type Single = {
  volume: string
  /** Stopped for the exchange: the program, and who works with it. */
  services: string[]
  /** What of the volume is exchanged, as a pattern; the rest of it stays. */
  items: string
  /** Shell that makes the items in the folder .next from what comes on stdin, and proves them. */
  make: string
  owner: string
}

/** 1 GB of jobs (REDIS_QUEUE_MAXMEMORY) over a slow line. */
const LONGEST_SECONDS = 3600

const SINGLES: Record<SingleName, Single> = {
  // With an append-only file switched on, Redis does not look at a dump.rdb: an append-only file is made, of which the copy
  // is the base (redis.io, "Redis persistence", Multi Part AOF). redis-cli leaves the 40 characters that mark the end of a
  // transfer after a copy that it writes into a pipe (7.0, seen); Redis would take them for a damaged end.
  queue: {
    volume: 'kgc_redis-queue-data',
    services: ['redis-queue', 'twenty', 'twenty-worker', 'chatwoot', 'chatwoot-sidekiq'],
    items: 'appendonlydir*',
    make: `mkdir .next/appendonlydir && cd .next/appendonlydir
cat > appendonly.aof.1.base.rdb
if tail -c 40 appendonly.aof.1.base.rdb | LC_ALL=C grep -qxE '[0-9a-f]{40}'; then truncate -s -40 appendonly.aof.1.base.rdb; fi
redis-check-rdb appendonly.aof.1.base.rdb > /dev/null
echo 'file appendonly.aof.1.base.rdb seq 1 type b' > appendonly.aof.manifest`,
    owner: '999:1000',
  },
  // With its journal, which belongs to the one database.
  grafana: {
    volume: 'kgc_grafana-data',
    services: ['grafana'],
    items: 'grafana.db*',
    make: `cat > .next/grafana.db
[ "$(sqlite3 .next/grafana.db 'PRAGMA integrity_check')" = ok ]
chmod 640 .next/grafana.db`,
    owner: '472:0',
  },
}

/** In the folder of what was set aside: everything is in it. Without it, the move that filled it was cut off. */
const WHOLE = '.whole'

/** A container of the backup's image with the volume. */
const inVolume = (volume: string, text: string): Command =>
  script(
    `docker run --rm -i --network none --volume ${volume}:/volume --workdir /volume --cap-drop ALL --cap-add CHOWN --cap-add DAC_OVERRIDE --security-opt no-new-privileges --entrypoint bash "$(docker inspect -f '{{.Image}}' ${BACKUP_SERVICE})" -eo pipefail -c ${quote(`shopt -s nullglob\n${text}`)}`,
  )

/**
 * Makes what is restored beside what serves, and proves it. What an earlier restore set aside is removed, unless a power
 * failure left it as the only one.
 * @param packed what zstd packed
 */
export function makeSingle(host: Host, name: SingleName, packed: Readable): Promise<string> {
  const { volume, items, make, owner } = SINGLES[name]
  const text = `if [ -d .before ]; then there=(${items}); [ \${#there[@]} -gt 0 ] || find .before -mindepth 1 -maxdepth 1 ! -name ${WHOLE} -exec mv -t . {} +; fi
rm -rf .next .before && mkdir .next
zstd -dcq | {
${make}
}
chown -R ${owner} . .next`
  return host.write(inVolume(volume, text), { input: packed, timeout: LONGEST_SECONDS })
}

/** The restored one takes the place of what serves, which is kept until the next restore. */
export function exchangeSingle(name: SingleName): Exchange {
  const { volume, services, items } = SINGLES[name]
  const move = (from: string, to: string) =>
    inVolume(
      volume,
      `[ -d ${from} ] || exit 0
[ -e ${to}/${WHOLE} ] || { mkdir -p ${to}; there=(${items}); [ \${#there[@]} = 0 ] || mv "\${there[@]}" ${to}; touch ${to}/${WHOLE}; }
rm -f ${from}/${WHOLE}
find ${from} -mindepth 1 -maxdepth 1 -exec mv -t . {} +
rmdir ${from}`,
    ).shell
  return { what: name, services, forward: move('.next', '.before'), back: move('.before', '.next') }
}

/** The exchange that brings back what the last one set aside; undefined when nothing was. */
export async function undoSingle(host: Host, name: SingleName): Promise<Exchange | undefined> {
  const exchange = exchangeSingle(name)
  const { forward, back } = exchange
  const isKept = async (folder: string) =>
    (await host.probe(inVolume(SINGLES[name].volume, `[ -e ${folder}/${WHOLE} ]`))).code === 0
  if (await isKept('.before')) return { ...exchange, forward: back, back: forward }
  return (await isKept('.next')) ? exchange : undefined
}

/** What is restored by itself, of what a backup has. */
export const singlesOf = ({ redis, grafana }: Manifest): (Stored & { name: SingleName })[] => [
  ...(redis ? [{ ...redis, name: 'queue' as const }] : []),
  ...(grafana ? [{ ...grafana, name: 'grafana' as const }] : []),
]
