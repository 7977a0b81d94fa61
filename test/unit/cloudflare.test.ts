import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parseCidr } from '../../lib/cidr.ts'
import { validate } from '../../lib/config.ts'
import { checkRanges, currentRanges, fetchRanges, readRanges } from '../../lib/firewall/cloudflare.ts'
import { originPullFiles } from '../../lib/firewall/origin-pull.ts'

const test = suite("Cloudflare's published ranges")

const FILE = 'nginx/cloudflare.conf'
const RANGES = readRanges(readFileSync(FILE, 'utf8'), FILE)
const texts = (family: number) => RANGES.filter((range) => range.family === family).map(({ text }) => text)
const [V4, V6] = [texts(4), texts(6)]
const folder = mkdtempSync(join(tmpdir(), 'kgc-ranges-'))
const answer = (ipv4_cidrs: unknown, ipv6_cidrs: unknown, success: unknown = true) =>
  JSON.stringify({ success, errors: [], messages: [], result: { ipv4_cidrs, ipv6_cidrs, etag: 'e' } })

/** The server's judge, with the ranges in use and what was missing before. */
function judge(input: string, { last = [...V4, ...V6], missing = '' } = {}) {
  writeFileSync(join(folder, 'last'), last.map((range) => `${range}\n`).join(''))
  writeFileSync(join(folder, 'missing'), missing)
  const run = spawnSync('perl', ['server/kgc-ranges', join(folder, 'last'), join(folder, 'missing')], { input })
  return {
    code: run.status,
    list: String(run.stdout).split('\n').filter(Boolean),
    stderr: String(run.stderr),
    missing: readFileSync(join(folder, 'missing'), 'utf8'),
  }
}

/** An API that answers this, for as long as the work takes. */
async function answering<T>(status: number, body: string, work: (url: string) => Promise<T>): Promise<T> {
  const server = createServer((_, response) => response.writeHead(status, { location: '/' }).end(body))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return work(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`).finally(() => server.close())
}

test.after(() => rmSync(folder, { recursive: true }))

test('are taken as they are published, here and on the server', async () => {
  const fetched = await answering(200, answer(V4, V6), fetchRanges)
  checkRanges(fetched, RANGES, false)
  assert.equal(fetched, RANGES)
  const { code, list, stderr } = judge(answer(V4, V6))
  assert.is(code, 0, stderr)
  assert.equal(list, [...V4, ...V6])
})

for (const [what, body] of [
  ['an HTML page', '<html></html>'],
  ['an empty answer', ''],
  ['JSON of another kind', '[]'],
  ['null', 'null'],
  ['no success', answer(V4, V6, false)],
  ['a success that is only true-like', answer(V4, V6, 1)],
  ['text in the place of lists', answer('all', 'all')],
  ['numbers in the lists', answer([...V4, 5], V6)],
  ['nulls in the lists', answer([...V4, null], V6)],
  ['empty lists', answer([], [])],
  ['no IPv6', answer(V4, [])],
  ['too many', answer([...V4, ...Array.from({ length: 26 }, (_, i) => `${i + 20}.0.0.0/16`)], V6)],
  ['everybody', answer([...V4, '0.0.0.0/0'], V6)],
  ['all of IPv6', answer(V4, [...V6, '::/0'])],
  ['a name', answer([...V4, 'cloudflare.com'], V6)],
  ['host bits', answer([...V4, '104.16.0.1/13'], V6)],
  ['host bits of IPv6', answer(V4, [...V6, '2606:4700::1/32'])],
  ['a length that is none', answer([...V4, '104.16.0.0/33'], V6)],
  ['a length with a zero', answer([...V4, '104.16.0.0/016'], V6)],
  ['a number with a zero', answer([...V4, '104.016.0.0/16'], V6)],
  ['a new line', answer([...V4, '104.16.0.0/16\n'], V6)],
  ['a rule of its own', answer([...V4, '104.16.0.0/16 -j ACCEPT'], V6)],
  ['a private range', answer([...V4, '172.20.0.0/16'], V6)],
  ['one around a private range', answer([...V4, '172.0.0.0/11'], V6)],
  ['one that is too narrow', answer([...V4, '104.16.0.0/25'], V6)],
  ['a local IPv6 range', answer(V4, [...V6, 'fd00::/32'])],
  ['IPv4 inside IPv6', answer(V4, [...V6, '2606:4700::1.2.3.4/128'])],
  ['most of it gone', answer(V4.slice(0, 10), V6.slice(0, 4))],
  ['much that is new', answer([...V4, ...Array.from({ length: 10 }, (_, i) => `${32 + 2 * i}.0.0.0/11`)], V6)],
] as const) {
  test(`are not taken with ${what}, neither here nor on the server`, async () => {
    const { code, list, stderr } = judge(body)
    assert.is(code, 1, stderr)
    assert.equal(list, [])
    assert.not.match(stderr, / at \S+ line \d+/)
    const here = await answering(200, body, async (url) => checkRanges(await fetchRanges(url), RANGES, false)).then(
      () => 'taken',
      (error) => error,
    )
    assert.instance(here, Error)
  })
}

test('stay as they are here when the answer is an error, or leads elsewhere', async () => {
  for (const status of [500, 403, 302, 204]) {
    const warnings: string[] = []
    const settings = (url: string) => ({ CLOUDFLARE_IPS_URL: url, CLOUDFLARE_RANGES_FILE: undefined })
    const last = [...RANGES.slice(1), parseCidr('192.88.99.0/24')]
    const kept = await answering(status, answer(V4, V6), (url) =>
      currentRanges(settings(url), last, false, (text) => warnings.push(text)),
    )
    assert.equal(kept, last)
    assert.match(warnings.join(), /those of the server are used/)
    const committed = await answering(status, '', (url) => currentRanges(settings(url), [], false, () => {}))
    assert.equal(committed, RANGES)
  }
})

test('are asked for at an https address', () => {
  const problems = (CLOUDFLARE_IPS_URL: string) =>
    validate({ ADMIN_ADDRESSES: '203.0.113.7', CLOUDFLARE_IPS_URL }, ['access']).problems
  assert.equal(problems('https://api.cloudflare.com/client/v4/ips'), [])
  assert.equal(problems('http://127.0.0.1:8080/client/v4/ips'), [])
  for (const plain of ['http://api.cloudflare.com/client/v4/ips', 'http://104.16.132.229/client/v4/ips'])
    assert.match(problems(plain).join(), /is not an https address/)
})

test('an added one counts on the server at once, a missing one goes after a second look a day later', () => {
  const [gone = '', ...rest] = V4
  const now = Math.floor(Date.now() / 1000)
  const added = judge(answer([...V4, '192.88.99.0/24'], V6))
  assert.ok(added.list.includes('192.88.99.0/24'))
  const first = judge(answer(rest, V6))
  assert.ok(first.list.includes(gone))
  assert.match(first.missing, new RegExp(`^${gone} \\d+\n$`))
  const soon = judge(answer(rest, V6), { missing: `${gone} ${now - 86_000}\n` })
  assert.ok(soon.list.includes(gone))
  assert.is(soon.missing, `${gone} ${now - 86_000}\n`)
  const later = judge(answer(rest, V6), { missing: `${gone} ${now - 86_400}\n` })
  assert.not(later.list.includes(gone))
  assert.is(later.missing, '')
  assert.is(judge(answer(V4, V6), { missing: `${gone} ${now - 86_400}\n` }).missing, '')
})

test('a certificate is wanted from all but the prober and those past Cloudflare', () => {
  assert.equal(originPullFiles(undefined, []), {})
  assert.throws(() => originPullFiles('nothing', []), /ORIGIN_PULL_CA_FILE is not one certificate/)
})

test.run()
