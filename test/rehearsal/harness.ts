import { spawn } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { parse } from 'dotenv'
import { loadConfig } from '../../lib/config.ts'
import { messageOf, Stop } from '../../lib/errors.ts'
import type { Host } from '../../lib/host.ts'
import { createLog } from '../../lib/log.ts'
import { type Survey, survey } from '../../lib/release/survey.ts'
import type { Front } from '../../lib/settings.ts'
import { type Command, script, sh } from '../../lib/shell.ts'
import { type Ask, frontDoor } from '../../lib/smoke/front-door.ts'
import { inState, PROJECT_DIR, SINK } from './names.ts'
import { raise } from './rehearse.ts'
import { connectAs, removeServer } from './server.ts'
import { playCloudflare } from './setup.ts'

export const ENV_FILE = inState('.env')
const LONGEST_SCRIPT_MS = 30 * 60_000

export type Run = { code: number | null; stdout: string; stderr: string; seconds: number }

/** Everything that any script printed in this test file, to look for secrets in. */
const printed: string[] = []

/** Runs a script as an operator does, without a terminal. */
export function runScript(name: string, args: string[] = [], env: Record<string, string> = {}): Promise<Run> {
  return startScript(name, args, env).ended
}

export function startScript(
  name: string,
  args: string[] = [],
  env: Record<string, string> = {},
  checkout = PROJECT_DIR,
) {
  const started = performance.now()
  const child = spawn(process.execPath, ['--import', 'tsx', `scripts/${name}.ts`, '--env', ENV_FILE, ...args], {
    cwd: checkout,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: LONGEST_SCRIPT_MS,
    env: { ...process.env, GITHUB_ACTIONS: '', GITHUB_ACTOR: '', ...env },
  })
  const output = { stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].on('data', (chunk) => {
      output[stream] += chunk
    })
  }
  const ended = new Promise<Run>((resolve) => {
    child.on('close', (code) => {
      printed.push(output.stdout, output.stderr)
      resolve({ code, ...output, seconds: (performance.now() - started) / 1000 })
    })
  })
  return { child, output, ended }
}

/** What a person sees at a terminal who types `typed` when the script asks. */
export function onTerminal(
  name: string,
  args: string[],
  question: RegExp,
  typed: string,
): Promise<{ code: number | null; shown: string }> {
  const command = `${process.execPath} --import tsx scripts/${name}.ts --env ${ENV_FILE} ${args.join(' ')}`
  const child = spawn('script', ['-qec', command, '/dev/null'], {
    cwd: PROJECT_DIR,
    env: { ...process.env, CI: '', GITHUB_ACTIONS: '' },
    timeout: 60_000,
  })
  let shown = ''
  let isTyped = false
  child.stdout.on('data', (chunk) => {
    shown += chunk
    if (isTyped || !question.test(shown)) return
    isTyped = true
    child.stdin.write(`${typed}\r`)
  })
  return new Promise((resolve) => {
    child.on('close', (code) => {
      printed.push(shown)
      resolve({ code, shown })
    })
  })
}

/** What both streams said, for a failure message. */
export const said = ({ code, stdout, stderr }: Run) => `exit code ${code}\n${stdout}${stderr}`

export const outputHas = (text: string) => printed.join('').includes(text)

export const secretsInOutput = () => {
  const { REGISTRY_PASSWORD, SMOKE_PASSWORD, SLACK_WEBHOOK_URL } = operatorEnv()
  return [REGISTRY_PASSWORD, SMOKE_PASSWORD, SLACK_WEBHOOK_URL].filter((value) => outputHas(value ?? ''))
}

export const operatorEnv = () => parse(readFileSync(ENV_FILE))

/** Another env file for one run: the rehearsal's with some values changed or, when empty, left out. */
export function envWith(changes: Record<string, string>): string {
  const file = inState(`test-${Object.keys(changes).join('-').toLowerCase()}.env`)
  const values = { ...operatorEnv(), ...changes }
  writeFileSync(
    file,
    Object.entries(values)
      .map(([name, value]) => `${name}=${value}\n`)
      .join(''),
    { mode: 0o600 },
  )
  return file
}

export const front = (): Front => loadConfig(ENV_FILE, ['front']).front
export const ask = (sub: string | undefined, request?: Ask) => frontDoor(front())(sub, request)
export const servedVersion = async () =>
  (JSON.parse((await ask(undefined, { path: '/api/health' })).body) as { version: string }).version

/**
 * Makes sure that the rehearsal runs, and serves.
 * @param empty with `true`, nothing was ever deployed on its server; with `either`, it does not matter
 */
export async function rehearsal({ empty = false }: { empty?: boolean | 'either' } = {}): Promise<void> {
  // uvu says of a hook that throws only that no test passed.
  await raise(createLog()).catch((error) => {
    console.log(messageOf(error), ...(error instanceof Stop ? error.next : []))
    throw error
  })
  await onServer(playCloudflare)
  if (empty === 'either') return
  const { active, records, containers } = await serverSurvey()
  const used = active !== undefined || records.length + Object.keys(containers).length > 0
  if (empty && used) {
    await removeServer()
    await raise(createLog())
  }
  if (empty || active) return
  for (const version of ['v1', 'v2']) {
    const run = await runScript('deploy', [version])
    if (run.code !== 0) throw new Error(said(run))
  }
}

/** Work on the server as a user that is none of the scripts under test. */
export async function onServer<T>(work: (host: Host) => Promise<T>, user = 'root'): Promise<T> {
  const host = await connectAs(user)
  return work(host).finally(() => host.close())
}

export const serverRead = (command: Command, user = 'root') =>
  onServer((host) => host.read(command, { timeout: 120 }), user)
export const serverSurvey = (): Promise<Survey> => onServer(survey, 'deploy')

/** Makes one service of the stack run otherwise than its files say: its container has another configuration's hash. */
export const makeDrift = () =>
  serverRead(
    script(`docker rm -f kgc-blackbox-exporter-1
docker run -d --name kgc-blackbox-exporter-1 --network kgc_egress-net \\
  --label com.docker.compose.project=kgc --label com.docker.compose.service=blackbox-exporter --label com.docker.compose.oneoff=False \\
  --label com.docker.compose.config-hash=old --label com.docker.compose.container-number=1 prom/blackbox-exporter:v0.28.0`),
  )

/** Takes every image of a release from the server that nothing runs from, so that the next start has to pull it. */
export const forgetImages = () =>
  serverRead(
    script(`docker ps -aq --filter status=exited --filter name=kgc-kgc- | xargs -r docker rm > /dev/null
docker images --digests --format '{{.Repository}}@{{.Digest}}' | grep -E '/(backend|frontend)@' | xargs -r -n 1 docker rmi 2> /dev/null || true`),
  )

/** Runs a command in one of the server's containers. */
export const inContainer = (service: string, command: Command) =>
  onServer((host) => host.probe(sh`docker exec ${`kgc-${service}-1`} sh -c ${command.shell}`, { timeout: 60 }))

type Message = { path: string; body: { text: string } }
export const sinkMessages = async (): Promise<Message[]> =>
  (await (await fetch(`${SINK.url}/messages`, { signal: AbortSignal.timeout(5000) })).json()) as Message[]
export const clearSink = async () => {
  await fetch(`${SINK.url}/messages`, { method: 'DELETE', signal: AbortSignal.timeout(5000) })
}
