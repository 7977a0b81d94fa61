import { hostname, userInfo } from 'node:os'

export type Actor = { who: string; from: string; runUrl?: string }

/** Who runs this, from where: the GitHub user and run, or the person at this machine. */
export function currentActor(env: Record<string, string | undefined> = process.env): Actor {
  if (env.GITHUB_ACTOR) {
    return {
      who: env.GITHUB_ACTOR,
      from: 'GitHub Actions',
      runUrl: `${env.GITHUB_SERVER_URL}/${env.GITHUB_REPOSITORY}/actions/runs/${env.GITHUB_RUN_ID}`,
    }
  }
  return { who: env.SUDO_USER ?? userInfo().username, from: hostname() }
}
