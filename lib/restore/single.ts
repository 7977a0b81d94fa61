import type { Readable } from 'node:stream'
import type { Manifest, Stored } from '../backup/manifest.ts'
import type { Host } from '../host.ts'
import { BACKUP_SERVICE } from '../layout.ts'
import { type Command, quote, script } from '../shell.ts'
import { exchangeContent, WHOLE } from './folders.ts'
import type { Exchange } from './swap.ts'

/** What has a volume of its own that one program writes: restored by itself, not with the databases. */
export type SingleName = 'queue' | 'grafana'

type Single = {
  volume: string
  /** Stopped for the exchange: the program, and who works with it. */
  services: string[]
  /** What of the volume is exchanged, as a pattern; the rest of it stays. */
  items: string
  /** Shell that makes the items in the folder .made from what comes on stdin, and proves them. */
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
    make: `mkdir .made/appendonlydir && cd .made/appendonlydir
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
    make: `cat > .made/grafana.db
[ "$(sqlite3 .made/grafana.db 'PRAGMA integrity_check')" = ok ]
chmod 640 .made/grafana.db`,
    owner: '472:0',
  },
}

/** A container of the backup's image with the volume. */
const inVolume = (volume: string, text: string): Command =>
  script(
    `docker run --rm -i --network none --volume ${volume}:/volume --workdir /volume --cap-drop ALL --cap-add CHOWN --cap-add DAC_OVERRIDE --security-opt no-new-privileges --entrypoint bash "$(docker inspect -f '{{.Image}}' ${BACKUP_SERVICE})" -eo pipefail -c ${quote(`shopt -s nullglob\n${text}`)}`,
  )

/**
 * Makes what is restored beside what serves, and proves it. Then what an earlier restore set aside is removed.
 * @param packed what zstd packed
 */
export function makeSingle(host: Host, name: SingleName, packed: Readable): Promise<string> {
  const { volume, make, owner } = SINGLES[name]
  const text = `rm -rf .made && mkdir .made
zstd -dcq | {
${make}
}
chown -R ${owner} .
touch .made/${WHOLE}
rm -rf .next .before`
  return host.write(inVolume(volume, text), { input: packed, timeout: LONGEST_SECONDS })
}

function exchangeWith(name: SingleName, from: string, to: string, before = ''): Exchange {
  const { volume, services, items } = SINGLES[name]
  const move = (one: string, other: string) => exchangeContent(one, other, `-name '${items}'`)
  const inside = (text: string) => inVolume(volume, text).shell
  return { what: name, services, forward: inside(`${before}${move(from, to)}`), back: inside(move(to, from)) }
}

/** What was made takes the place of what serves, which is kept until the next restore. */
export const exchangeSingle = (name: SingleName): Exchange =>
  exchangeWith(name, '.next', '.before', `[ ! -e .made/${WHOLE} ] || mv -T .made .next\n`)

/** The exchange that brings back what the last one set aside; undefined when nothing was. */
export async function undoSingle(host: Host, name: SingleName): Promise<Exchange | undefined> {
  const isKept = async (folder: string) =>
    (await host.probe(inVolume(SINGLES[name].volume, `[ -e ${folder}/${WHOLE} ]`))).code === 0
  if (await isKept('.before')) return exchangeWith(name, '.before', '.next')
  return (await isKept('.next')) ? exchangeWith(name, '.next', '.before') : undefined
}

/** What is restored by itself, of what a backup has. */
export const singlesOf = ({ redis, grafana }: Manifest): (Stored & { name: SingleName })[] => [
  ...(redis ? [{ ...redis, name: 'queue' as const }] : []),
  ...(grafana ? [{ ...grafana, name: 'grafana' as const }] : []),
]
