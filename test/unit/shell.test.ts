import { execFileSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { chain, quote, script, sh } from '../../lib/shell.ts'

const test = suite('a command for the shell')

const HOSTILE = [
  '',
  ' ',
  "'",
  `it's "quoted"`,
  '$(touch /tmp/kgc-owned)',
  '`id`',
  ['$HOME $', '{HOME} $$'].join(''),
  '; rm -rf / #',
  'a\nb\n',
  '\ttab\\back\\slash\\',
  '-rf',
  '--',
  '*?[a-z]~!',
  '&& || | > < &',
  'árvíztűrő tükörfúrógép 🚀',
  '\u0001\u007f',
  '%s %d \\n',
  "'\\''",
]

const throughRealShell = (shell: string, command: string) => execFileSync(shell, ['-c', command], { encoding: 'utf8' })

for (const shell of ['/bin/sh', '/bin/bash']) {
  test(`gives every hostile argument to a program as it was, through ${shell}`, () => {
    for (const text of HOSTILE) {
      assert.is(throughRealShell(shell, sh`printf %s ${text}`.shell), text)
    }
  })

  test(`survives being nested three times, as \`ssh host timeout sh -c\` does, through ${shell}`, () => {
    for (const text of HOSTILE) {
      const inner = sh`printf %s ${text}`
      assert.is(throughRealShell(shell, sh`sh -c ${sh`sh -c ${inner.shell}`.shell}`.shell), text)
    }
  })
}

test('makes one word of each item of an array', () => {
  assert.is(throughRealShell('/bin/sh', sh`printf '<%s>' ${['a b', '', "c'd"]}`.shell), "<a b><><c'd>")
})

test('leaves plain words readable', () => {
  assert.is(
    sh`docker pull ${'registry.kgc.test:5000/kgc/backend:v1'}`.shell,
    'docker pull registry.kgc.test:5000/kgc/backend:v1',
  )
})

test('puts commands into commands without quoting them again', () => {
  assert.is(chain(sh`cd ${'/a b'}`, sh`ls ${['-l']}`).shell, "cd '/a b' && ls -l")
})

test('stops a chain at the first line that fails, inside of longer texts too', () => {
  const longer = script('false\necho went on')
  assert.throws(() => throughRealShell('/bin/sh', chain(longer, sh`echo next`).shell))
  assert.is(throughRealShell('/bin/sh', chain(script('true\ntrue'), sh`echo next`).shell), 'next\n')
})

test('refuses a NUL byte, which no argument can carry', () => {
  assert.throws(() => quote('a\0b'), /NUL/)
})

test.run()
