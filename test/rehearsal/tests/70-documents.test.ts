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

/** The fenced blocks of a document: ```sh for the operator's machine, ```sh asks when it asks first, ```sh server for the server. */
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
const RUN_BY_CI = ['npm ci', 'npm run rehearse', 'npm test']

/** The books' examples go from v2 back to v1. */
async function v2ServesAfterV1(): Promise<void> {
  if ((await serverSurvey()).active?.version === 'v2') return
  for (const version of ['v1', 'v2']) {
    const run = await runScript('deploy', [version])
    assert.is(run.code, 0, said(run))
  }
}

test.before(async () => {
  await rehearsal()
  await runScript('deploy', ['v1'])
  await v2ServesAfterV1()
  await serverRead(sh`docker exec kgc-backup-service-1 backup`)
})

for (const { where, heading, lines } of [...blocksOf('README.md'), ...blocksOf('RUNBOOK.md')]) {
  if (where === 'server') {
    test(`${heading}: works on the server`, () =>
      onServer(async (host) => {
        for (const line of lines) assert.is((await host.probe(script(line))).code, 0, line)
      }, 'deploy'))
    continue
  }
  const scripts = lines.filter((line) => line.startsWith('npx tsx scripts/'))
  for (const line of scripts) {
    test(`${heading}: ${line}`, async () => {
      if (/rollback\.ts(?! --list)/.test(line)) await v2ServesAfterV1()
      const yes = where === 'asks' ? ' --yes' : ''
      const command = `cd ${sh`${PROJECT_DIR}`.shell} && ${line}${yes} --env ${sh`${ENV_FILE}`.shell}`
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
