import type { Config } from '../config.ts'
import { EXIT, messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { ROOT } from '../layout.ts'
import { login, resolveDigests } from './registry.ts'
import type { Images } from './release.ts'
import { imagesOnServer, isOnServer } from './retention.ts'
import { type Survey, survey } from './survey.ts'

export type Preflight = { images: Images; found: Survey }

/**
 * Everything that can be known before anything is touched, asked at the same time.
 * @returns the images of the release, pinned by digest, and what the server is like
 * @throws Stop that names every problem at once
 */
export async function preflight(
  host: Host,
  config: Config<'registry' | 'release'>,
  version: string,
): Promise<Preflight> {
  const [found, images, loggedIn] = await Promise.allSettled([
    survey(host),
    resolveDigests(host, config.registry, version),
    host.write(login(config.registry), { input: config.registry.REGISTRY_PASSWORD, timeout: 40 }),
  ])
  const failures = [found, images, loggedIn].filter((check) => check.status === 'rejected').map(({ reason }) => reason)
  const problems = failures.map(messageOf)
  const hints = failures.flatMap((failure) => (failure instanceof Stop ? failure.next : []))
  if (found.status === 'fulfilled') {
    for (const { problem, hint } of serverProblems(found.value, config.release.MIN_FREE_DISK_GB)) {
      problems.push(problem)
      hints.push(hint)
    }
  }
  if (images.status === 'rejected' || found.status === 'rejected' || problems.length > 0) {
    const needsHuman = failures.some((failure) => failure instanceof Stop && failure.code === EXIT.needsHuman)
    throw new Stop(`${problems.join('\n')}\nNothing was touched.`, hints, needsHuman ? EXIT.needsHuman : EXIT.failed)
  }
  return { images: images.value, found: found.value }
}

/** What makes a server unfit for a deploy. */
export function serverProblems(found: Survey, minFreeGb: number): { problem: string; hint: string }[] {
  if (!found.prepared) {
    return [
      {
        problem: `The server is not set up: there is no ${ROOT}/.env.`,
        hint: 'Set it up first: npx tsx scripts/bootstrap-server.ts (RUNBOOK.md, "A new server").',
      },
    ]
  }
  const problems = []
  if (found.freeGb < minFreeGb) problems.push(diskProblem(found, minFreeGb))
  if (found.dirty.length > 0) {
    problems.push({
      problem: `Somebody changed files in ${ROOT} on the server:\n${found.dirty.map((file) => `  ${file}`).join('\n')}`,
      hint: `Look with \`git -C ${ROOT} diff\`, bring what is wanted into the repository, then \`git -C ${ROOT} stash -u\`.`,
    })
  }
  return problems
}

const diskProblem = ({ freeGb }: Survey, minFreeGb: number) => ({
  problem: `The server's disk has ${freeGb} GB free; a release wants ${minFreeGb} GB (MIN_FREE_DISK_GB).`,
  hint: 'See what takes the space with `docker system df` and `du -xh -d 2 / | sort -h | tail` on the server: RUNBOOK.md, "The disk is full".',
})

/** @throws Stop when the images have to be pulled and the disk has no room for them; what is there needs none */
export async function assertRoomToPull(host: Host, found: Survey, images: Images, minFreeGb: number): Promise<void> {
  if (found.freeGb >= minFreeGb || isOnServer(await imagesOnServer(host, found.records), images)) return
  const { problem, hint } = diskProblem(found, minFreeGb)
  throw new Stop(problem, ['Choose a release that is on the server: npx tsx scripts/rollback.ts --list', hint])
}
