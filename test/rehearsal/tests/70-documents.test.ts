import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { localHost } from '../../../lib/local.ts'
import { script, sh } from '../../../lib/shell.ts'
import { docker } from '../engine.ts'
import { ENV_FILE, onServer, rehearsal, runScript, said, serverRead, serverSurvey } from '../harness.ts'
import { PROJECT_DIR } from '../names.ts'

const test = suite('every command that the documents print')

type Block = { where: string; heading: string; lines: string[] }

/**
 * The fenced blocks of a document: ```sh for the operator's machine, ```sh asks when it asks first, ```sh server for the user
 * deploy on the server, ```sh admin for the admin user there.
 */
function blocksOf(document: string): Block[] {
  const text = readFileSync(join(PROJECT_DIR, document), 'utf8')
  let heading = document
  const blocks: Block[] = []
  for (const part of text.split(/^(?=#+ |```)/m)) {
    if (part.startsWith('#')) heading = part.split('\n')[0]?.replace(/^#+ /, '') ?? ''
    const [, where, body] = /^```sh ?(\w*)\n([\s\S]*)$/.exec(part) ?? []
    if (body !== undefined)
      blocks.push({ where: where || 'here', heading: `${document}, ${heading}`, lines: body.trim().split('\n') })
  }
  return blocks
}

/** What CI itself runs, or this very test is part of: not run again from inside. */
const RUN_BY_CI = ['npm ci', 'npm run rehearse']

/** The release that a command deploys, and the one that it goes back to. */
const named = (line: string) => line.replace('--to vN', '--to v1').replace('vN', 'v2')

/** What the operator would type when asked. */
const answered = (line: string) => `${line} ${line.includes('restore.ts') ? '--confirm kgc' : '--yes'}`

async function v2ServesAfterV1(): Promise<void> {
  const serves = (await serverSurvey()).active?.version
  if (serves === 'v2') return
  for (const version of serves === 'v1' ? ['v2'] : ['v1', 'v2']) {
    const run = await runScript('deploy', [version])
    assert.is(run.code, 0, said(run))
  }
}

test.before(async () => {
  await rehearsal()
  const run = await runScript('deploy', ['v1'])
  assert.is(run.code, 0, said(run))
  await v2ServesAfterV1()
  await serverRead(sh`docker exec kgc-backup-service-1 backup`)
})

for (const { where, heading, lines } of [...blocksOf('README.md'), ...blocksOf('RUNBOOK.md')]) {
  if (where === 'server' || where === 'admin') {
    test(`${heading}: ${lines[0]}`, () =>
      onServer(
        async (host) => {
          for (const line of lines) assert.is((await host.probe(script(line))).code, 0, line)
        },
        where === 'server' ? 'deploy' : 'root',
      ))
    continue
  }
  const scripts = lines.filter((line) => line.startsWith('npx tsx scripts/'))
  for (const line of scripts) {
    test(`${heading}: ${line}`, async () => {
      if (/rollback\.ts(?! --list)/.test(line)) await v2ServesAfterV1()
      const typed = named(where === 'asks' ? answered(line) : line)
      const command = `cd ${sh`${PROJECT_DIR}`.shell} && ${typed} --env ${sh`${ENV_FILE}`.shell}`
      const { code, stdout, stderr } = await localHost().probe(script(command), { timeout: 300 })
      assert.is(code, 0, `${stdout}${stderr}`)
    })
  }
  const others = lines.filter((line) => !scripts.includes(line))
  if (others.length === 0) continue
  test(`${heading}: ${others[0]}`, async () => {
    if (others.every((line) => RUN_BY_CI.includes(line))) return
    const { code, stdout, stderr } = await localHost().probe(
      script(`cd ${sh`${PROJECT_DIR}`.shell}\nset -e\n${others.join('\n')}`),
    )
    assert.is(code, 0, `${stdout}${stderr}`)
  })
}

test('npm run rehearse, when it runs already, changes nothing and is quick', async () => {
  const running = () => docker(sh`ps --no-trunc --format ${'{{.ID}} {{.Names}} {{.Status}}'}`)
  const ids = (text: string) => text.replace(/ Up .*/g, '')
  const before = { outside: ids(await running()), server: await serverSurvey() }
  const { code, stdout, stderr } = await localHost().probe(sh`cd ${PROJECT_DIR} && npm run rehearse`, { timeout: 120 })
  assert.is(code, 0, `${stdout}${stderr}`)
  assert.is(ids(await running()), before.outside)
  assert.equal(await serverSurvey(), before.server)
})

test('the index of the runbook leads to sections that exist, each once', () => {
  const text = readFileSync(join(PROJECT_DIR, 'RUNBOOK.md'), 'utf8')
  const anchors = [...text.matchAll(/^## (.+)$/gm)].map(([, title]) =>
    (title ?? '')
      .toLowerCase()
      .replace(/[^\w\s-]/g, '')
      .replaceAll(' ', '-'),
  )
  assert.equal(
    anchors.filter((anchor, index) => anchors.indexOf(anchor) !== index),
    [],
  )
  for (const [, link] of text.matchAll(/\(#([^)]+)\)/g)) assert.ok(anchors.includes(link ?? ''), `#${link}: ${anchors}`)
})

test.run()
