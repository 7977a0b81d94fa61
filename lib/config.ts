import { existsSync, readFileSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, resolve } from 'node:path'
import { parse } from 'dotenv'
import type { z } from 'zod'
import { EXIT, Stop } from './errors.ts'
import { type Front, GROUPS, type Server } from './settings.ts'

type Groups = typeof GROUPS
export type Config<G extends keyof Groups = keyof Groups> = { [K in G]: z.infer<Groups[K]> } & { secrets: string[] }

const SECRET = /PASSWORD|TOKEN|SECRET|WEBHOOK|AGENT_KEY/
const FILE_PATH = /_FILE$/

/**
 * Reads the configuration: the file, and the environment for what the file leaves open (so that a named file never
 * operates on another server because of a variable left in the shell).
 * @param file the env file; when it is not given, `.env` is used if it exists
 * @param groups which parts the script needs; the rest is not validated
 * @throws Stop (exit 2) that names every problem at once, without any value
 */
export function loadConfig<G extends keyof Groups>(file: string | undefined, groups: G[]): Config<G> {
  const env = { ...process.env, ...readEnvFile(file) }
  for (const [name, value] of Object.entries(env)) {
    if (value === '') delete env[name]
    else if (FILE_PATH.test(name) && value) env[name] = absolute(value, dirname(file ?? '.env'))
  }
  const { config, problems } = validate(env, groups)
  if (problems.length > 0) {
    throw new Stop(
      `The configuration has ${problems.length === 1 ? 'a problem' : `${problems.length} problems`}:\n${problems.map((p) => `  ${p}`).join('\n')}`,
      [
        file
          ? `Correct ${file}.`
          : 'cp .env.example .env && chmod 600 .env, then fill it in; or name a file with --env.',
      ],
      EXIT.usage,
    )
  }
  return config
}

export function validate<G extends keyof Groups>(env: Record<string, string | undefined>, groups: G[]) {
  const problems: string[] = []
  const parts: Record<string, unknown> = {}
  for (const group of groups) {
    const schema: z.ZodObject = GROUPS[group]
    const parsed = schema.safeParse(env)
    parts[group] = parsed.data
    for (const name of Object.keys(schema.shape)) {
      const issue = parsed.error?.issues.find(({ path }) => path[0] === name)
      if (!issue) continue
      const what = env[name] === undefined ? 'is not set' : issue.message
      problems.push(`${name} ${what}. Example: ${schema.shape[name].meta()?.example}`)
    }
  }
  const secrets = Object.entries(env).flatMap(([name, value]) => (value && SECRET.test(name) ? [value] : []))
  return { config: { ...parts, secrets } as unknown as Config<G>, problems }
}

function readEnvFile(file: string | undefined): Record<string, string> {
  const name = file ?? '.env'
  if (!existsSync(name)) {
    if (file) throw new Stop(`There is no file ${file}.`, ['Give the path of an env file with --env.'], EXIT.usage)
    return {}
  }
  if (statSync(name).mode & 0o077) {
    throw new Stop(`${name} holds secrets and others on this machine can read it.`, [`chmod 600 ${name}`], EXIT.usage)
  }
  return parse(readFileSync(name))
}

const absolute = (file: string, base: string) =>
  file.startsWith('~/') ? resolve(homedir(), file.slice(2)) : resolve(base, file)

/** Where a run logs in for SSH. */
export const sshTarget = ({ SSH_HOST, SSH_PORT, SSH_USER, SSH_KEY_FILE, SSH_HOST_KEY }: Server) => ({
  host: SSH_HOST,
  port: SSH_PORT,
  user: SSH_USER,
  keyFile: SSH_KEY_FILE,
  hostKey: SSH_HOST_KEY,
})

/** The site's address as a person would type it. */
export const siteUrl = ({ DOMAIN, FRONT_PORT }: Front, sub?: string) =>
  `https://${sub ? `${sub}.` : ''}${DOMAIN}${FRONT_PORT === 443 ? '' : `:${FRONT_PORT}`}`
