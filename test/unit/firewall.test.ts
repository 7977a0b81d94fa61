import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { contains, isInside, parseCidr, parseCidrs } from '../../lib/cidr.ts'
import { validate } from '../../lib/config.ts'
import { checkRanges, readRanges } from '../../lib/firewall/cloudflare.ts'
import { type Access, difference, firewallRules, httpsRanges } from '../../lib/firewall/rules.ts'
import { assertSafe } from '../../lib/firewall/server.ts'

const test = suite('the firewall')

const FILE = 'nginx/cloudflare.conf'
const TEXT = readFileSync(FILE, 'utf8')
const RANGES = readRanges(TEXT, FILE)
const ACCESS: Access = {
  sshPort: 22,
  admins: parseCidrs('203.0.113.7,2001:db8:5::/64'),
  interfaces: [],
  cloudflare: RANGES,
  extra: parseCidrs('198.51.100.7'),
  httpFrom: 'any',
}

for (const [text, canonical] of [
  ['203.0.113.7', '203.0.113.7/32'],
  ['198.41.128.0/17', '198.41.128.0/17'],
  ['0.0.0.0/0', '0.0.0.0/0'],
  ['2A06:98C0::/29', '2a06:98c0::/29'],
  ['::1', '::1/128'],
  ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2:3:4:5:6/128'],
] as const) {
  test(`reads ${text}`, () => assert.is(parseCidr(text).text, canonical))
}

for (const wrong of [
  ...[
    '',
    'localhost',
    'kgc-erp.hu',
    '1.2.3',
    '1.2.3.4/33',
    '1.2.3.4/',
    '1.2.3.4/024',
    '01.2.3.4',
    '1.2.3.4/24',
    '1.2.3.4 ',
  ],
  ...[
    '2001:db8::1/64',
    '2001:db8:::1',
    '2001:db8::/129',
    'fe80::1%eth0',
    '::ffff:1.2.3.4',
    '2001:db8::g',
    '-s',
    '1.2.3.4;id',
  ],
]) {
  test(`refuses '${wrong}'`, () => assert.throws(() => parseCidr(wrong), /^it/))
}

test('tells what lies inside', () => {
  const [v4, v6] = [parseCidr('198.51.100.0/25'), parseCidr('2001:db8:5::/64')]
  assert.ok(
    isInside('198.51.100.127', [v6, v4]) && isInside('::ffff:198.51.100.1', [v4]) && isInside('2001:db8:5::9', [v6]),
  )
  assert.not(isInside('198.51.100.128', [v4, v6]) || isInside('2001:db8:6::9', [v4, v6]))
  assert.ok(
    contains(parseCidr('0.0.0.0/0'), v4) && !contains(v4, parseCidr('0.0.0.0/0')) && !contains(parseCidr('::/0'), v4),
  )
})

test('takes the admin list strictly, and says which entry is wrong', () => {
  const problem = (value: string) => validate({ ADMIN_ADDRESSES: value }, ['access']).problems.join('\n')
  assert.is(problem('203.0.113.7, 198.51.100.0/28,2001:db8:5::/48'), '')
  assert.match(validate({}, ['access']).problems.join(), /^ADMIN_ADDRESSES is not set\. Example: /)
  assert.match(problem('203.0.113.7,vpn.kgc-erp.hu'), /^ADMIN_ADDRESSES is wrong in entry 2: it is not an IP address/)
  assert.match(problem('203.0.113.7,'), /entry 2/)
  for (const wide of ['0.0.0.0/0', '10.0.0.0/8', '203.0.112.0/23', '::/0', '2001:db8::/47'])
    assert.match(problem(wide), /it is wider than/)
})

test('takes the other settings strictly', () => {
  const problems = (env: Record<string, string>) =>
    validate({ ADMIN_ADDRESSES: '203.0.113.7', ...env }, ['access']).problems
  assert.equal(problems({ SSH_ALLOW_INTERFACES: 'tailscale0,wg-kgc' }), [])
  for (const env of [
    { SSH_ALLOW_INTERFACES: 'eth+' },
    { SSH_ALLOW_INTERFACES: 'a -j ACCEPT' },
    { HTTP_FROM: 'none' },
    { EXTRA_HTTPS_SOURCES: '0.0.0.0/0' },
  ])
    assert.is(problems(env).length, 1, JSON.stringify(env))
})

test("takes nginx's list as Cloudflare's", () => {
  assert.is(RANGES.length, 22)
  checkRanges(RANGES, RANGES, false)
})

test('refuses a list that has anything else in it, with its line', () => {
  for (const line of [
    '<html>',
    'set_real_ip_from cloudflare.com;',
    'allow all;',
    'set_real_ip_from 104.16.0.0/33;',
    'set_real_ip_from 104.16.0.1/13;',
  ])
    assert.throws(() => readRanges(`# ranges\n${line}\n`, 'list'), /list, line 2: it/, line)
})

const without = (count: number) => RANGES.slice(count)
for (const [what, ranges, doubt] of [
  ['an empty list', [], /0 IPv4 ranges, expected 10 to 40/],
  ['no IPv6', RANGES.filter(({ family }) => family === 4), /0 IPv6 ranges/],
  ['too many', [...RANGES, ...Array.from({ length: 26 }, (_, i) => parseCidr(`${i + 20}.0.0.0/16`))], /41 IPv4 ranges/],
  ['everybody', [...RANGES, parseCidr('0.0.0.0/0')], /0\.0\.0\.0\/0 is not between/],
  ['one that is too wide', [...RANGES, parseCidr('32.0.0.0/10')], /32\.0\.0\.0\/10 is not between/],
  ['a private one', [...RANGES, parseCidr('172.20.0.0/16')], /172\.20\.0\.0\/16 is not public/],
  ['one around a private one', [...RANGES, parseCidr('172.0.0.0/11')], /172\.0\.0\.0\/11 is not public/],
  ['a local IPv6 one', [...RANGES, parseCidr('fd00::/32')], /fd00::\/32 is not public/],
  ['a far smaller one', [...RANGES.slice(0, 10), ...RANGES.slice(-4)], /only 14 of the 22 ranges in use/],
] as const) {
  test(`refuses ${what}`, () => assert.throws(() => checkRanges([...ranges], RANGES, false), doubt))
}

test('only a change that is too great can be forced', () => {
  const fewer = [...RANGES.slice(0, 10), ...RANGES.slice(-4)]
  checkRanges(fewer, RANGES, true)
  checkRanges(without(5), RANGES, false)
  const more = [...RANGES, ...Array.from({ length: 10 }, (_, i) => parseCidr(`${32 + 2 * i}.0.0.0/16`))]
  assert.throws(() => checkRanges(more, RANGES, false), /only 22 of its 32 ranges are in use/)
  checkRanges(more, RANGES, true)
  checkRanges(more, [], false)
  assert.throws(() => checkRanges([...RANGES, parseCidr('10.0.0.0/16')], RANGES, true), /not public/)
})

test('renders each family with what belongs to it', () => {
  const [v4, v6] = [firewallRules(ACCESS, 4), firewallRules(ACCESS, 6)]
  assert.match(v4, /^-A KGC-IN -s 203\.0\.113\.7\/32 -p tcp --dport 22 -j ACCEPT$/m)
  assert.match(v6, /^-A KGC-IN -s 2001:db8:5::\/64 -p tcp --dport 22 -j ACCEPT$/m)
  assert.not.match(v4, /::/)
  assert.not.match(v6, /\d\.\d|\*nat|-p icmp /)
  for (const type of [1, 2, 3, 4, ...[130, 131, 132, 133, 134, 135, 136, 141, 142, 143, 148, 149, 151, 152, 153]])
    assert.match(v6, new RegExp(`--icmpv6-type ${type} .*-j ACCEPT`))
  assert.match(v6, /^-A KGC-IN -s fe80::\/10 -p udp --sport 547 --dport 546 -j ACCEPT$/m)
  assert.equal(httpsRanges(v4 + v6), RANGES)
})

test('every chain of ours ends by dropping, and 22 is never open to everybody', () => {
  for (const family of [4, 6] as const) {
    for (const httpFrom of ['any', 'cloudflare'] as const) {
      const rules = firewallRules({ ...ACCESS, httpFrom, cloudflare: [], extra: [] }, family)
      for (const chain of ['KGC-IN', 'KGC-CF', 'DOCKER-USER', 'KGC-FORWARD', 'KGC-FORWARD-CF'])
        assert.match(
          rules
            .split('\n')
            .filter((line) => line.startsWith(`-A ${chain} `))
            .pop() ?? '',
          /-j DROP$/,
        )
      for (const line of rules.split('\n').filter((line) => line.includes('--dport 22'))) assert.match(line, / -s /)
      for (const line of rules.split('\n').filter((line) => line.includes('ctorigdstport')))
        assert.match(line, /--ctstate DNAT/)
      assert.not.match(rules, /^-[FXPD] /m)
    }
  }
})

test('what is forwarded is judged alike in the table that is asked before Docker, and in its own chain', () => {
  const rules = firewallRules(ACCESS, 4).split('\n')
  const of = (chain: string) => rules.filter((line) => line.startsWith(`-A ${chain} `))
  const alike = (lines: string[]) =>
    lines.map((line) => line.replaceAll('KGC-FORWARD-CF', 'KGC-CF').replace(/-A \S+/, ''))
  assert.equal(alike(of('KGC-FORWARD')), alike(of('DOCKER-USER')))
  assert.equal(alike(of('KGC-FORWARD-CF')), alike(of('KGC-CF')))
})

test('refuses rules that would exclude the one who applies them', () => {
  const found = {
    source: '198.51.100.9',
    sourceInterface: 'eth0',
    defaultInterfaces: ['eth0'],
    kept: '',
    missing: [],
    obstacles: [],
  }
  assert.throws(
    () => assertSafe(found, ACCESS, false),
    /connected from 198\.51\.100\.9, which is not in ADMIN_ADDRESSES/,
  )
  assertSafe(found, ACCESS, true)
  assertSafe({ ...found, source: '203.0.113.7' }, ACCESS, false)
  assertSafe({ ...found, sourceInterface: 'tailscale0' }, { ...ACCESS, interfaces: ['tailscale0'] }, false)
  assert.throws(() => assertSafe(found, { ...ACCESS, interfaces: ['eth0'] }, true), /eth0, which leads to the internet/)
  assert.throws(() => assertSafe({ ...found, obstacles: ['ufw is active'] }, ACCESS, true), /ufw is active/)
  assert.throws(() => assertSafe({ ...found, missing: ['awk'] }, ACCESS, true), /awk is not installed/)
})

test('shows what changes, line by line', () => {
  assert.equal(difference('a\nb\n', 'b\nc\n'), ['- a', '+ c'])
})

test.run()
