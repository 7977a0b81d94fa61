import type { Host } from '../host.ts'
import { CHECKOUT_PENDING, RECORDS, RELEASE_CONF, ROOT, SERVICES } from '../layout.ts'
import { type Command, script } from '../shell.ts'
import {
  type Active,
  type Color,
  damagedActive,
  NOTHING_DEPLOYED,
  parseActive,
  parseReleaseName,
  releaseName,
} from './color.ts'
import { goodVersions, parseRecords, type ReleaseRecord } from './release.ts'
import { askProxy } from './switch.ts'

/** What the server is like before a run touches it. */
export type Survey = {
  /** False on a server on which nothing was set up. */
  prepared: boolean
  commit: string
  /** A checkout was cut off in the middle; the next one makes good for it. */
  checkoutPending: boolean
  /** Changed or unknown files in the checkout. */
  dirty: string[]
  freeGb: number
  /** What serves: see `believed`. */
  active: Active | undefined
  /** nginx's file names another release than its workers serve: a run died between the rename and the reload. */
  torn: boolean
  /** Without its file nginx cannot start, so nobody could say what serves. */
  activeIsThere: boolean
  /** What nginx's workers say they serve; empty when nginx does not run. */
  serving: string
  /** nginx's workers that still finish requests of an earlier configuration. */
  retiring: string[]
  /** State by Compose service: running, exited, … */
  containers: Record<string, string>
  /** Images that each color is set to, whether it runs or not. */
  colorImages: Record<Color, string[]>
  records: ReleaseRecord[]
  /** Changes with the variables of the stack. */
  variables: string
  /** The stack's services, and the files and variables that name them so; see `listStack`. */
  listed: { of: string; services: string[] } | undefined
  /** Changes with everything that a run changes on the server; see `stateSum`. */
  sum: string
}

/** Prints a checksum of what runs change: when it is the same as in an earlier survey, no other run came between. */
export const stateSum: Command = script(
  `cat ${RECORDS} ${RELEASE_CONF} ${CHECKOUT_PENDING} state/blue.env state/green.env .git/HEAD 2>/dev/null | cksum`,
)

/** One round trip for all of it: each costs about 0.1 s over a real network. Docker is asked while git works. */
const surveyCommand: Command = script(`
cd ${ROOT} 2>/dev/null && [ -f .env ] || { echo '@@unprepared'; exit 0; }
# First: what changes while this runs makes the sum an old one.
echo '@@sum'; ${stateSum.shell}
# In memory: a full disk must not make it look as if nothing ran.
docker=$(mktemp -d -p /dev/shm) || exit; trap 'rm -r "$docker"' EXIT
${askProxy.shell} > "$docker/serving" 2>/dev/null &
docker ps -a --filter label=com.docker.compose.project=kgc --filter label=com.docker.compose.oneoff=False \\
  --format '{{.Label "com.docker.compose.service"}} {{.State}}' > "$docker/containers" & ps=$!
echo '@@commit'; git rev-parse -q --verify HEAD || true
# Before the first checkout there is nothing to compare with, and after one that was cut off it will be done again.
echo '@@pending'; ls ${CHECKOUT_PENDING} 2>/dev/null || true
echo '@@dirty'; [ -e ${CHECKOUT_PENDING} ] || ! git rev-parse -q --verify HEAD > /dev/null || git status --porcelain
echo '@@free'; df -Pk ${ROOT} /var/lib/docker | awk 'NR > 1 { print $4 }' | sort -n | head -n 1
echo '@@active'; if [ -e ${RELEASE_CONF} ]; then if [ -s ${RELEASE_CONF} ]; then cat ${RELEASE_CONF}; else echo '(empty)'; fi; fi
echo '@@colors'; cat state/blue.env state/green.env 2>/dev/null || true
echo '@@records'; cat ${RECORDS} 2>/dev/null || true
echo '@@variables'; cksum < .env
echo '@@listed'; cat ${SERVICES} 2>/dev/null || true
wait $ps || exit; wait
echo '@@containers'; cat "$docker/containers"
echo '@@serving'; cat "$docker/serving"
`)

/** @throws Stop when the active file is not one of ours */
export async function survey(host: Host): Promise<Survey> {
  const found = parseSurvey(await host.read(surveyCommand, { timeout: 30 }))
  const wasServing = found.records.some(({ outcome }) => outcome === 'good')
  if (!found.activeIsThere && (wasServing || parseReleaseName(found.serving))) throw damagedActive()
  return believed(found)
}

/**
 * When file and workers name different releases, the workers are believed: what the file names was never tested, and nobody
 * ever met it. Unless it served well, and theirs did not: then a run died while it switched back.
 */
export function believed(found: Survey): Survey {
  const { active: named, serving } = found
  const served = parseReleaseName(serving)
  if (serving === releaseName(named) || (!served && serving !== NOTHING_DEPLOYED)) return found
  const good = goodVersions(found.records)
  const isBack = named && good.includes(named.version) && !(served && good.includes(served.version))
  return { ...found, active: isBack ? named : served, torn: true }
}

export function parseSurvey(output: string): Survey {
  const sections = new Map<string, string>()
  for (const part of output.split(/^@@/m).slice(1)) {
    const end = part.indexOf('\n')
    sections.set(end < 0 ? part : part.slice(0, end), end < 0 ? '' : part.slice(end + 1))
  }
  const section = (name: string) => sections.get(name) ?? ''
  const lines = (name: string) => section(name).split('\n').filter(Boolean)
  return {
    prepared: !sections.has('unprepared'),
    commit: section('commit').trim(),
    checkoutPending: section('pending').trim() !== '',
    dirty: lines('dirty'),
    freeGb: Math.floor(Number(section('free').trim()) / 1024 ** 2),
    active: parseActive(section('active')),
    torn: false,
    activeIsThere: section('active') !== '',
    serving: section('serving').trim().split(' ').slice(0, 2).join(' '),
    retiring: lines('retiring'),
    containers: Object.fromEntries(lines('containers').map((line) => line.split(' ') as [string, string])),
    colorImages: { blue: imagesOf(section('colors'), 'BLUE'), green: imagesOf(section('colors'), 'GREEN') },
    records: parseRecords(section('records')),
    variables: section('variables').trim().replaceAll(' ', '-'),
    listed: parseListed(section('listed')),
    sum: section('sum').trim(),
  }
}

function parseListed(line: string): Survey['listed'] {
  const [of, ...services] = line.trim().split(' ')
  return of ? { of, services } : undefined
}

const imagesOf = (env: string, prefix: string) =>
  [...env.matchAll(new RegExp(`^${prefix}_\\w+_IMAGE=(\\S+)$`, 'gm'))].map(([, image]) => image ?? '')

/** One sentence on what users get now. */
export function describeServing({ active, serving }: Pick<Survey, 'active' | 'serving'>): string {
  if (!active) return 'Nothing was deployed yet, so nothing serves.'
  if (!serving) return `nginx does not answer. ${active.version} (${active.color}) should be serving.`
  return `${serving.split(' ')[1]} (${serving.split(' ')[0]}) serves.`
}
