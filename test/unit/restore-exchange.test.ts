import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { mendFolder } from '../../lib/restore/files.ts'
import { exchangeContent } from '../../lib/restore/folders.ts'
import { exchangeSingle } from '../../lib/restore/single.ts'

const test = suite('restore: an exchange of files that is cut off')

const room = mkdtempSync(join(tmpdir(), 'kgc-exchange-test-'))
const shims = join(room, 'bin')
/** Only where something is to fail: a process more for every move. */
const faultShims = join(room, 'fault-bin')
const count = join(room, 'count')

// The power fails at the CUT-th command that changes something; a move of several has then moved one.
const STEP = `step() { read -r n < ${count}; echo $((n + 1)) > ${count}; [ $((n + 1)) != "$CUT" ] || kill -9 $$; }\n`
const FAULTS = `${STEP}${['rm', 'rmdir', 'touch', 'mkdir'].map((name) => `${name}() { step; command ${name} "$@"; }`).join('\n')}\n`
const shim = (folder: string, name: string, text: string) => {
  mkdirSync(folder)
  writeFileSync(join(folder, name), `#!/bin/bash\n${text}\n`)
  chmodSync(join(folder, name), 0o755)
}
shim(
  faultShims,
  'mv',
  `[ "$2" != -t ] || /bin/mv "\${@:1:4}"
${STEP}step
if [ "$2" != -t ]; then exec /bin/mv "$@"; elif [ $# -gt 4 ]; then exec /bin/mv "\${@:1:3}" "\${@:5}"; fi`,
)
// What comes last is the shell that would run in the container.
shim(shims, 'docker', `[ "$1" != run ] || exec bash -eo pipefail -c "$FAULTS\${@: -1}"`)

/** @returns whether it ended by itself */
function run(folder: string, text: string, cut = 0): boolean {
  writeFileSync(count, '0\n')
  const faults = cut === 0 ? '' : FAULTS
  const { status, stderr } = spawnSync('bash', ['-ec', `${faults}${text}`], {
    cwd: folder,
    env: {
      ...process.env,
      PATH: `${cut === 0 ? '' : `${faultShims}:`}${shims}:${process.env.PATH}`,
      CUT: String(cut),
      FAULTS: faults,
    },
    encoding: 'utf8',
  })
  assert.ok(status === 0 || cut > 0, `${status} ${stderr}`)
  return status === 0
}

type Tree = Record<string, string>
function write(folder: string, tree: Tree): void {
  for (const [path, text] of Object.entries(tree)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
}
const read = (folder: string): Tree =>
  Object.fromEntries(
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((one) => one.isFile())
      .map((one) => join(one.parentPath, one.name).slice(folder.length + 1))
      .sort()
      .map((path) => [path, readFileSync(join(folder, path), 'utf8')]),
  )
const inside = (name: string, tree: Tree): Tree =>
  Object.fromEntries([...Object.entries(tree).map(([path, text]) => [`${name}/${path}`, text]), [`${name}/.whole`, '']])
const sorted = (tree: Tree): Tree => Object.fromEntries(Object.entries(tree).sort(([a], [b]) => (a < b ? -1 : 1)))

const A = '.files_restore_20261123t020000'
const COPY = '.files_copy_20261123t020000'
const B = '.files_old_20261123t020000'
const EARLIER = '.files_old_20261101t000000'

type Case = {
  what: string
  served: Tree
  other: Tree
  /** Where the other one is at the beginning, and after being taken back; and where what served is in between. */
  from: string
  back: string
  to: string
  forward: string
  reverse: string
  mend?: string
}
const FILES = {
  served: { a: 'served a', 'd/x y': 'served x' },
  other: { a: 'other a', 'd/w': 'w' },
}
const filesCase = (from: string, to: string) => ({
  ...{ ...FILES, from, back: from, to },
  forward: exchangeContent(from, to, "! -name '.files_*'"),
  reverse: exchangeContent(to, from, "! -name '.files_*'"),
})
const GRAFANA = { served: { 'grafana.db': 'served', 'grafana.db-wal': 'served log' }, other: { 'grafana.db': 'other' } }
const CASES: Case[] = [
  { what: 'files, to what was restored', ...filesCase(A, B), mend: mendFolder },
  { what: 'files, back to what served', ...filesCase(EARLIER, B) },
  {
    ...{ what: 'grafana', ...GRAFANA, from: '.made', back: '.next', to: '.before' },
    ...{ forward: exchangeSingle('grafana').forward, reverse: exchangeSingle('grafana').back },
  },
]

for (const { what, served, other, from, back, to, forward, reverse, mend } of CASES) {
  const exchanged = sorted({ ...other, ...inside(to, served) })
  const unserved = { [`${from}/.unserved`]: '' }
  const begin = sorted({ ...served, ...inside(from, other), ...(mend ? unserved : {}) })
  const takenBack = sorted({ ...served, ...inside(back, other) })
  const isAsItWas = (tree: Tree) =>
    [begin, takenBack, sorted({ ...served, ...inside(from, other) })].some(
      (one) => JSON.stringify(one) === JSON.stringify(tree),
    )
  let folders = 0

  /** A folder in which an exchange was cut off, for every place where that can be. */
  function* halfDone(text: string, begin: Tree): Generator<string> {
    for (let cut = 1; ; cut++) {
      const folder = join(room, `${CASES.findIndex((one) => one.what === what)}-${folders++}`)
      mkdirSync(folder)
      write(folder, begin)
      if (run(folder, text, cut)) return
      yield folder
    }
  }
  const copyOf = (folder: string) => {
    const copy = `${folder}-copy`
    rmSync(copy, { recursive: true, force: true })
    cpSync(folder, copy, { recursive: true })
    return copy
  }

  test(`${what}: completed or taken back from wherever it was, it is whole, and nothing is lost`, () => {
    let cuts = 0
    for (const [text, before] of [
      [forward, begin],
      [reverse, exchanged],
    ] as const)
      for (const folder of halfDone(text, before)) {
        cuts++
        const other = copyOf(folder)
        run(folder, forward)
        assert.equal(read(folder), exchanged)
        run(folder, forward)
        assert.equal(read(folder), exchanged, 'a second time, it does nothing')
        run(other, reverse)
        assert.ok(isAsItWas(read(other)), JSON.stringify(read(other)))
      }
    assert.ok(cuts >= 10, `only ${cuts} places were tried`)
  })

  test(`${what}: what was written while it lay half done is kept, too`, () => {
    for (const text of [forward, reverse])
      for (const folder of halfDone(forward, begin)) {
        const [name = ''] = Object.keys(served)
        if (existsSync(join(folder, name))) continue
        write(folder, { [name]: 'new' })
        run(folder, text)
        const kept = Object.values(read(folder))
        for (const one of [...Object.values(served), ...Object.values(other), 'new'])
          assert.ok(kept.includes(one), `${one} is lost: ${JSON.stringify(read(folder))}`)
      }
  })

  if (mend) {
    test(`${what}: without any note of it, the next run completes it or takes it back, and removes the rest`, () => {
      const ends = new Set<string>()
      for (const folder of halfDone(forward, begin)) {
        run(folder, mend)
        ends.add(JSON.stringify(read(folder)))
      }
      assert.equal([...ends].sort(), [JSON.stringify(exchanged), JSON.stringify(sorted(served))].sort())
    })

    test(`${what}: what came to serve and was exchanged back is kept, with what was written meanwhile`, () => {
      const folder = join(room, 'served')
      mkdirSync(folder)
      write(folder, begin)
      run(folder, forward)
      write(folder, { meanwhile: 'new' })
      run(folder, reverse)
      run(folder, mend)
      run(folder, mend)
      assert.equal(read(folder), sorted({ ...served, ...inside(COPY, { ...other, meanwhile: 'new' }) }))
    })
  }
}

test.after(() => rmSync(room, { recursive: true, force: true }))
test.run()
