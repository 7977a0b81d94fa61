import { PassThrough } from 'node:stream'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CommandFailed } from '../../../lib/host.ts'
import { script, sh } from '../../../lib/shell.ts'
import { connect } from '../../../lib/ssh.ts'
import { onServer, rehearsal, serverRead } from '../harness.ts'
import { inState, SERVER } from '../names.ts'
import { hostKey } from '../server.ts'

const test = suite('the SSH host, against a real sshd')

const target = async () => ({
  host: SERVER.address,
  port: 22,
  user: 'deploy',
  keyFile: inState('id_ed25519'),
  hostKey: await hostKey(),
})

test.before(() => rehearsal({ empty: 'either' }))

test('brings hostile arguments to the server as they were', async () => {
  await onServer(async (host) => {
    for (const text of [
      "it's",
      '$(id)',
      '`id`',
      'a\nb',
      '-rf /',
      '"',
      '\\',
      '; exit 9',
      '*',
      '',
      'árvíz 🚀',
      '$HOME',
    ]) {
      assert.is((await host.probe(sh`printf %s ${text}`)).stdout, text)
    }
  }, 'deploy')
})

test('takes only the exit code for success', async () => {
  await onServer(async (host) => {
    assert.is(await host.read(script('echo a warning >&2; echo fine')), 'fine')
    const failed = await host.read(sh`sh -c ${'echo reason >&2; exit 9'}`).catch((error) => error)
    assert.instance(failed, CommandFailed)
    assert.is(failed.result.code, 9)
    assert.match(failed.message, /reason/)
  }, 'deploy')
})

test('streams lines as they come, not at the end', async () => {
  await onServer(async (host) => {
    const seen: number[] = []
    await host.read(script('echo one; sleep 1; echo two'), { onLine: () => seen.push(Date.now()) })
    assert.is(seen.length, 2)
    assert.ok((seen[1] ?? 0) - (seen[0] ?? 0) > 700)
  }, 'deploy')
})

test('ends a command and its children on the server at the time limit, and says so', async () => {
  await onServer(async (host) => {
    const started = Date.now()
    const failed = await host.read(script('sleep 4711 & sleep 4711; true'), { timeout: 1 }).catch((error) => error)
    assert.instance(failed, CommandFailed)
    assert.match(failed.message, /time limit of 1 s/)
    assert.ok(Date.now() - started < 8000)
  }, 'deploy')
  assert.is(await serverRead(script("pgrep -fc '^sleep 4711' || true")), '0')
})

test('carries megabytes through stdin and stdout unharmed', async () => {
  await onServer(async (host) => {
    const stream = new PassThrough()
    const big = Buffer.alloc(8 * 1024 * 1024, 'abcdefgh')
    stream.end(big)
    assert.is(
      await host.read(sh`md5sum`, { input: stream }),
      `${(await import('node:crypto')).createHash('md5').update(big).digest('hex')}  -`,
    )
    assert.is((await host.read(script('head -c 3000000 /dev/zero | base64 -w 0'))).length, 4_000_000)
  }, 'deploy')
})

test('runs several commands at the same time on its one connection', async () => {
  await onServer(async (host) => {
    const started = Date.now()
    await Promise.all(Array.from({ length: 8 }, () => host.read(sh`sleep 1`)))
    // One after another they would take 8 s.
    assert.ok(Date.now() - started < 6000)
  }, 'deploy')
})

test('notices that the connection was cut in the middle of a command', async () => {
  const host = await connect(await target())
  const running = host.probe(sh`sleep 30`)
  setTimeout(() => void serverRead(script("pkill -KILL -u deploy -f '^sshd' || true")), 500)
  assert.is((await running).code, null)
  const next = await host.read(sh`true`).catch((error) => error)
  assert.match(next.message, /connection to .* is gone/)
  await host.close()
})

test('sends nothing to a server with another host key', async () => {
  const failed = await connect({ ...(await target()), hostKey: `SHA256:${'B'.repeat(43)}` }).catch((error) => error)
  assert.match(failed.message, /pins SHA256:B{43}\. Nothing was sent/)
})

test('gives up on an address that does not answer', async () => {
  const started = Date.now()
  const failed = await connect({ ...(await target()), host: '198.51.100.99' }).catch((error) => error)
  assert.match(failed.message, /did not answer/)
  assert.ok(Date.now() - started < 20_000)
})

test.run()
