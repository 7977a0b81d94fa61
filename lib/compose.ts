import { colorEnv, ROOT } from './layout.ts'
import { type Command, sh } from './shell.ts'

const PROJECT = 'kgc'
const FILES = ['base', 'data', 'kgc', 'vendors', 'operations']
/** What the colors' definitions refer to. Compose reads these in 0.12 s, all of them in 0.23 s (measured). */
const COLOR_FILES = ['base', 'data', 'kgc']
const ENV_FILES = ['.env', colorEnv('blue'), colorEnv('green')]

/**
 * A `docker compose` command on the server's stack.
 * @param root another directory with the same layout, e.g. the files of a commit that is not yet checked out
 */
export function compose(rest: Command, root = ROOT, files = FILES): Command {
  const flags = [
    ...['--project-name', PROJECT, '--project-directory', 'compose'],
    ...ENV_FILES.flatMap((file) => ['--env-file', file]),
    ...files.flatMap((name) => ['-f', `compose/${name}.yaml`]),
  ]
  return sh`cd ${root} && docker compose --progress quiet ${flags} ${rest}`
}

/** Starts services and waits until they are healthy, jobs they depend on included. Leaves alone what already runs. */
export const startMissing = (services: string[], waitSeconds: number) =>
  compose(sh`up -d --no-recreate --wait --wait-timeout ${waitSeconds} ${services}`)

/** Starts one color as its env file says; touches nothing else. */
export const startColor = (services: string[]) => compose(sh`up -d --no-deps ${services}`, ROOT, COLOR_FILES)

/** Prints the whole configuration; `stackServices` reads it. */
export const listServices = compose(sh`config --format json`)

type ComposeConfig = { services: Record<string, { restart?: string; image?: string }> }

/**
 * @param json what `listServices` printed
 * @returns the services that must run besides the two colors; jobs are left out: whoever needs them starts them
 */
export function stackServices(json: string): string[] {
  const { services } = JSON.parse(json) as ComposeConfig
  return Object.entries(services)
    .filter(([name, { restart }]) => restart !== 'no' && !/^kgc-(backend|frontend)-(blue|green)$/.test(name))
    .map(([name]) => name)
    .sort()
}
