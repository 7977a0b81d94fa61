import { PassThrough } from 'node:stream'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CommandFailed, hostOver, lineSplitter, type Result, type Transport } from '../../lib/host.ts'
import { localHost } from '../../lib/local.ts'
import { type Command, script, sh } from '../../lib/shell.ts'

const test = suite('a host')

const answering = (result: Partial<Result>): Transport & { ran: string[] } => {
  const ran: string[] = []
  return {
    name: 'erp.example',
    ran,
    async exec(command) {
      ran.push(command.shell)
      return { code: 0, stdout: '', stderr: '', ...result }
    },
    async close() {},
  }
}

test('takes only exit code 0 for success: not 1, and not a connection that died', async () => {
  for (const code of [1, 255, null]) {
    const error = await hostOver(answering({ code, stderr: 'no space left' }))
      .read(sh`docker pull x`)
      .catch((reason) => reason)
    assert.instance(error, CommandFailed)
    assert.match(error.message, /erp\.example/)
    assert.match(error.message, /docker pull x/)
    assert.match(error.message, /no space left/)
  }
})

test('does not take words on stderr for a failure', async () => {
  assert.is(await hostOver(answering({ stdout: 'fine\n', stderr: 'a warning' })).read(sh`true`), 'fine')
})

test('in a dry run executes reads, and hands writes over as they would run', async () => {
  const printed: Command[] = []
  const transport = answering({ stdout: 'read' })
  const host = hostOver(transport, (command) => printed.push(command))
  assert.is(await host.read(sh`cat state`), 'read')
  assert.is(await host.write(sh`rm -rf ${'a b'}`), '')
  assert.equal(transport.ran, ['cat state'])
  assert.equal(
    printed.map(({ shell }) => shell),
    ["rm -rf 'a b'"],
  )
})

test('probes without throwing', async () => {
  assert.is((await hostOver(answering({ code: 3 })).probe(sh`false`)).code, 3)
})

test('cuts a stream into lines, whatever its chunks', () => {
  const lines: string[] = []
  const splitter = lineSplitter((line) => lines.push(line))
  for (const chunk of ['one\ntw', 'o\r\nthr', 'ee']) splitter.push(chunk)
  splitter.end()
  assert.equal(lines, ['one', 'two', 'three'])
})

test('runs on this machine: output, input, lines of both streams, exit code', async () => {
  const local = localHost()
  assert.is(await local.read(sh`printf %s ${"it's"}`), "it's")
  assert.is(await local.read(sh`cat`, { input: 'through stdin' }), 'through stdin')
  const stream = new PassThrough()
  stream.end('streamed')
  assert.is(await local.read(sh`cat`, { input: stream }), 'streamed')
  assert.is((await local.probe(sh`exit 7`)).code, 7)
  const lines: string[] = []
  await local.read(script('echo out; echo err >&2'), { onLine: (line) => lines.push(line) })
  assert.equal(lines.sort(), ['err', 'out'])
})

test('ends a command on this machine at its time limit', async () => {
  const started = Date.now()
  assert.is.not((await localHost().probe(sh`sleep 20`, { timeout: 1 })).code, 0)
  assert.ok(Date.now() - started < 5000)
})

test.run()
