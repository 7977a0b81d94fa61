import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parse as parseYaml } from 'yaml'
import { type Flag, parse } from '../../lib/cli.ts'
import { PROJECT_DIR } from '../rehearsal/names.ts'

const test = suite('what the documents say of scripts and alerts')

const RULES = 'monitoring/prometheus/rules'
const read = (path: string) => readFileSync(join(PROJECT_DIR, path), 'utf8')

type Rules = { groups: { rules: { alert: string }[] }[] }
const alerts = readdirSync(join(PROJECT_DIR, RULES))
  .map((name) => parseYaml(read(`${RULES}/${name}`)) as Rules)
  .flatMap(({ groups }) => groups.flatMap(({ rules }) => rules.map(({ alert }) => alert)))

test('the runbook says where to look for every alert, and names none that there is not', () => {
  const [, section = ''] = /^## Alerts\n([\s\S]*?)^## /m.exec(read('RUNBOOK.md')) ?? []
  const named = [...section.matchAll(/^\| ([A-Z][\w, ]+) \|/gm)].flatMap(([, names]) => names?.split(', ') ?? [])
  assert.ok(alerts.length > 0)
  assert.equal(named.sort(), alerts.sort())
})

/** What a script takes, from its own help. */
async function usageOf(name: string) {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', 'tsx', join(PROJECT_DIR, 'scripts', `${name}.ts`), '--help'],
    { timeout: 30_000 },
  )
  const flags = Object.fromEntries(
    [...stdout.matchAll(/^ {2}(?:-\w, )?--([\w-]+)( \S+)? {2,}/gm)].map(([, flag = '', value]): [string, Flag] => [
      flag,
      { type: value ? 'string' : 'boolean', help: '' },
    ]),
  )
  const synopsis = /^Usage: \S+ \S+ \S+ (.*)\[options\]$/m.exec(stdout)?.[1]?.trim().split(' ').filter(Boolean) ?? []
  const required = synopsis.filter((word) => !word.startsWith('[')).length
  return { name, summary: '', flags, positionals: { names: synopsis, required }, examples: [] }
}

/** What a shell makes of it: words, some of them in quotes. */
const wordsOf = (text: string) =>
  [...text.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain ?? '')

const commands = ['README.md', 'RUNBOOK.md'].flatMap((document) =>
  [...read(document).matchAll(/npx tsx scripts\/([\w-]+)\.ts([^`\n]*)/g)].map(([command, name = '', rest = '']) => ({
    document,
    command,
    name,
    words: wordsOf(rest),
  })),
)
const scripts = [...new Set(commands.map(({ name }) => name))]
const usages = await Promise.all(scripts.map(usageOf))

for (const usage of usages) {
  test(`every ${usage.name} command of the documents has only arguments that the script takes`, () => {
    assert.ok('env' in usage.flags, 'its help was not understood')
    for (const { document, command, words } of commands.filter(({ name }) => name === usage.name)) {
      assert.not.throws(() => parse(usage, words), `${document}: ${command}`)
    }
  })
}

const anchor = (title: string) =>
  title
    .toLowerCase()
    .replace(/[^\w\s-]/g, '')
    .replaceAll(' ', '-')

test('the sections of the runbook that errors, alerts and the README name are there', () => {
  const anchors = [...read('RUNBOOK.md').matchAll(/^## (.+)$/gm)].map(([, title]) => anchor(title ?? ''))
  const sources = ['lib', 'scripts', RULES].flatMap((folder) =>
    readdirSync(join(PROJECT_DIR, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => /\.(ts|yml)$/.test(name))
      .map((name) => read(`${folder}/${name}`)),
  )
  // In quotes, or to the end of the line in the alerts' YAML.
  const titles = sources.flatMap((text) => [...text.matchAll(/RUNBOOK\.md, (?:"([^"]+)"|([A-Z].*))/g)])
  const named = [
    ...titles.map(([, quoted, plain]) => anchor(quoted ?? plain ?? '')),
    ...[...read('README.md').matchAll(/RUNBOOK\.md#([\w-]+)/g)].map(([, link = '']) => link),
  ]
  assert.ok(named.length > 10)
  assert.equal(
    named.filter((one) => !anchors.includes(one)),
    [],
  )
})

test('every script but smoke-test has a dry run, as the runbook says', () => {
  assert.equal(
    scripts.sort(),
    readdirSync(join(PROJECT_DIR, 'scripts'))
      .map((file) => file.replace('.ts', ''))
      .sort(),
  )
  assert.equal(
    usages.filter(({ flags }) => !('dry-run' in flags)).map(({ name }) => name),
    ['smoke-test'],
  )
})

test.run()
