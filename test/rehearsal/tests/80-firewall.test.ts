import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { script } from '../../../lib/shell.ts'
import { local } from '../engine.ts'
import { envWith, rehearsal, runScript, said } from '../harness.ts'
import { NETWORKS, RUNNER_ADDRESS, SINK } from '../names.ts'
import {
  keepTrying,
  matrix,
  probe,
  probeStraight,
  SOURCES,
  startClients,
  startNeighbor,
  stopClients,
  stopNeighbor,
} from '../packets.ts'
import { inServer } from '../server.ts'

const test = suite('the firewall, with packets')

/** On each of these something listens: sshd, nginx, programs on the host, and 5432 published by mistake. */
const PORTS = ['22', '80', '443', '3000', '5432', '2375', '40000']
const ALL_OPEN = Object.keys(SOURCES).flatMap((source) => PORTS.map((port) => `${source} ${port}`))
const HARDENED = ['admin 22', 'admin 80', 'stranger 80', 'cloudflare 80', 'cloudflare 443']
const NGINX = 'nginx:1.30-alpine'
let cells = 0

const expectOpen = async (expected: string[], ports = PORTS) => {
  const found = await matrix(ports)
  cells += found.cells
  assert.equal(found.open.sort(), [...expected].sort())
  assert.equal(found.refused, [])
}

const settings = (changes: Record<string, string> = {}) => ({
  ...{ ADMIN_ADDRESSES: `${RUNNER_ADDRESS},${SOURCES.admin.address}` },
  ...{ EXTRA_HTTPS_SOURCES: NETWORKS.edge.subnet, ...changes },
})
const harden = (args: string[], changes: Record<string, string> = {}) =>
  runScript('harden-firewall', ['--env', envWith(settings(changes)), ...args])
/** The server's console: it works whatever the firewall does. */
const onConsole = (text: string) => local.read(inServer(script(text)), { timeout: 120 })
const publish = (name: string, port: number) =>
  onConsole(
    `docker run -d --name ${name} -p 0.0.0.0:${port}:80 --entrypoint nginx ${NGINX} -g 'daemon off;' > /dev/null`,
  )

test.before(async () => {
  await rehearsal()
  await onConsole(`
if [ -x /usr/local/sbin/kgc-firewall ]; then /usr/local/sbin/kgc-firewall off; fi
docker rm -f kgc-mistake kgc-later > /dev/null 2>&1 || true
systemctl stop kgc-listeners 2> /dev/null || true
systemd-run -q --collect --unit=kgc-listeners systemd-socket-activate -l 3000 -l 2375 -l 40000 --accept cat`)
  await Promise.all([publish('kgc-mistake', 5432), startClients(), startNeighbor()])
  await sleep(1000)
})

test.after(async () => {
  await onConsole(`
/usr/local/sbin/kgc-firewall off
docker rm -f kgc-mistake kgc-later > /dev/null 2>&1 || true
systemctl stop kgc-listeners kgc-firewall-revert.timer 2> /dev/null || true`)
  await Promise.all([stopClients(), stopNeighbor()])
  console.log(`  ${cells} cells of the matrix were tried`)
})

/** A container's own address: Docker before 28 lets packets through that are routed straight to it. */
const DIRECT = ['172.22.0.10:443', '172.22.0.10:80']

test('before, everything is open: the test can see it', async () => {
  await expectOpen(ALL_OPEN)
  assert.equal(await probeStraight(DIRECT), Object.fromEntries(DIRECT.map((target) => [target, 'open'])))
  const stop = keepTrying('stranger', '5432')
  await sleep(500)
  const { tries, open } = await stop()
  assert.ok(open > 5, `${open} of ${tries}`)
})

test('rules in INPUT alone do not hold for what Docker publishes: the test can see that, too', async () => {
  await onConsole(`
iptables -N TEST-INPUT
iptables -A TEST-INPUT -i lo -j ACCEPT
iptables -A TEST-INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A TEST-INPUT -p tcp --dport 22 -s ${SOURCES.admin.address} -j ACCEPT
iptables -A TEST-INPUT -p tcp --dport 80 -j ACCEPT
iptables -A TEST-INPUT -p tcp --dport 443 -s ${NETWORKS.edge.subnet} -j ACCEPT
iptables -A TEST-INPUT -j DROP
iptables -I INPUT -j TEST-INPUT`)
  try {
    await expectOpen([
      'admin 22',
      ...Object.keys(SOURCES).flatMap((from) => [`${from} 80`, `${from} 443`, `${from} 5432`]),
    ])
  } finally {
    await onConsole('iptables -D INPUT -j TEST-INPUT; iptables -F TEST-INPUT; iptables -X TEST-INPUT')
  }
})

test('switching off and a dry run exclude each other', async () => {
  const run = await harden(['--off', '--dry-run', '--yes'])
  assert.is(run.code, 2, said(run))
  assert.match(run.stderr, /exclude each other/)
})

test('a dry run shows the rules and what they change, and changes nothing', async () => {
  const before = await onConsole('iptables -S; ip6tables -S; ls -R /etc/kgc /run/kgc-firewall 2>&1')
  const run = await harden(['--dry-run'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, /^\+ -A KGC-IN -j DROP$/m)
  assert.is(await onConsole('iptables -S; ip6tables -S; ls -R /etc/kgc /run/kgc-firewall 2>&1'), before)
})

test('refuses what would lock its operator out, and other owners of the rules, before anything is touched', async () => {
  const before = await onConsole('iptables -S')
  const excluded = await harden(['--yes'], { ADMIN_ADDRESSES: SOURCES.admin.address })
  assert.is(excluded.code, 1, said(excluded))
  assert.match(excluded.stderr, new RegExp(`connected from ${RUNNER_ADDRESS}, which is not in ADMIN_ADDRESSES`))
  const notRoot = await harden(['--yes'], { SSH_ADMIN_USER: 'deploy' })
  assert.match(notRoot.stderr, /needs root, and the login on .* is deploy/)
  for (const wrong of ['0.0.0.0/0', 'admin.example']) {
    const run = await harden(['--yes'], { ADMIN_ADDRESSES: wrong })
    assert.is(run.code, 2, said(run))
    assert.match(run.stderr, /ADMIN_ADDRESSES is wrong in entry 1/)
  }
  assert.is(await onConsole('iptables -S'), before)

  await onConsole('iptables -I DOCKER-USER -s 192.0.2.1 -j ACCEPT')
  const foreign = await harden(['--yes']).finally(() => onConsole('iptables -D DOCKER-USER -s 192.0.2.1 -j ACCEPT'))
  assert.is(foreign.code, 1, said(foreign))
  assert.match(foreign.stderr, /somebody else's rule in DOCKER-USER \(iptables\).*192\.0\.2\.1/)
})

test('a rule set that locks its operator out is put back by the server itself', async () => {
  const run = await harden(['--yes', '--force', '--revert-after', '15'], { ADMIN_ADDRESSES: SOURCES.admin.address })
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /puts the old ones back at \d\d:\d\d:\d\d UTC/)
  // The script gave up after 10 s; until the timer, the rules hold.
  assert.equal(await probe('stranger', ['22', '5432']), { 22: 'filtered', 5432: 'filtered' })
  await sleep(7000)
  await expectOpen(ALL_OPEN)
  assert.match((await harden(['--status'])).stderr, /no rules were ever confirmed|switched off/)
})

test('applied, it leaves open what should be, and nothing else', async () => {
  const run = await harden(['--yes'])
  assert.is(run.code, 0, said(run))
  await expectOpen(HARDENED)
  const status = await harden(['--status'])
  assert.is(status.code, 0, said(status))
  assert.match(status.stdout, new RegExp(`ACCEPT .* ${RUNNER_ADDRESS} .* dpt:22`))
})

test('nobody gets in straight at a container, nor do containers lose their way', async () => {
  assert.equal(await probeStraight(DIRECT), Object.fromEntries(DIRECT.map((target) => [target, 'filtered'])))
  await onConsole(`
docker exec kgc-nginx-proxy-1 curl -fsS -m 5 -o /dev/null http://172.20.6.10:3000/ ||
  docker exec kgc-nginx-proxy-1 curl -fsS -m 5 -o /dev/null http://172.20.6.11:3000/
docker exec kgc-nginx-proxy-1 curl -fsS -m 5 -o /dev/null ${SINK.url}/messages`)
})

/** A weaker rule set must show: else a test that passes says nothing. */
const MUTANTS: [string, string, string[]][] = [
  ['no `--ctstate DNAT`', 's/ --ctstate DNAT//', DIRECT.map((to) => `neighbor ${to}`)],
  [
    'no end of DOCKER-USER',
    '/^-A DOCKER-USER.* -j DROP$/d',
    ['admin 5432', 'cloudflare 5432', 'stranger 5432', ...DIRECT.map((to) => `neighbor ${to}`)],
  ],
  ['no end of KGC-CF', '/^-A KGC-CF -j DROP$/d', ['admin 443', 'stranger 443']],
  ['22 without its source', 's/ -s [^ ]* -p tcp --dport 22 / -p tcp --dport 22 /', ['cloudflare 22', 'stranger 22']],
]
for (const [what, change, seen] of MUTANTS) {
  test(`sees rules with ${what}`, async () => {
    await onConsole(`
mkdir -p /run/kgc-firewall/candidate && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/candidate/
sed -i '${change}' /run/kgc-firewall/candidate/rules.v4
/usr/local/sbin/kgc-firewall try 60`)
    const [straight, { open }] = await Promise.all([probeStraight(DIRECT), matrix(PORTS)])
    await onConsole('/usr/local/sbin/kgc-firewall revert')
    assert.equal(
      [
        ...open.filter((cell) => !HARDENED.includes(cell)).sort(),
        ...DIRECT.filter((target) => straight[target] === 'open').map((target) => `neighbor ${target}`),
      ],
      seen,
    )
  })
}

test('rules that the kernel refuses leave the old ones as they are', async () => {
  const rules = 'iptables-save | grep -v "^[#:]"; ip6tables-save | grep -v "^[#:]"'
  const before = await onConsole(rules)
  for (const family of [4, 6]) {
    const tried = await onConsole(`
mkdir -p /run/kgc-firewall/candidate && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/candidate/
sed -i 's/-A KGC-IN -j DROP/-A KGC-IN -j NONSENSE/' /run/kgc-firewall/candidate/rules.v${family}
/usr/local/sbin/kgc-firewall try 60 2>&1 && echo accepted || echo refused`)
    assert.match(tried, /the new rules were refused; the old ones are active\nrefused$/)
    assert.is(await onConsole(rules), before)
  }
})

test('applied again, nothing changes', async () => {
  const rules = 'iptables-save | grep -v "^[#:]"; ip6tables-save | grep -v "^[#:]"'
  const before = await onConsole(rules)
  const run = await harden(['--yes'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /IPv4: nothing changes/)
  assert.is(await onConsole(rules), before)
})

test('a change that locks its operator out gives way to the rules before it', async () => {
  const run = await harden(['--yes', '--force', '--revert-after', '15'], { ADMIN_ADDRESSES: SOURCES.stranger.address })
  assert.is(run.code, 1, said(run))
  await expectOpen(['stranger 22', ...HARDENED.slice(1)])
  await sleep(7000)
  await expectOpen(HARDENED)
  assert.is((await harden(['--status'])).code, 0)
})

test('holds during and after a restart of dockerd', async () => {
  const stops = [keepTrying('stranger', '443'), keepTrying('admin', '5432')]
  await onConsole('systemctl restart docker')
  await sleep(1000)
  for (const stop of stops) {
    const { tries, open } = await stop()
    assert.is(open, 0, `${open} of ${tries} tries got in`)
    assert.ok(tries > 10, `only ${tries} tries`)
    cells += tries
  }
  await expectOpen(HARDENED)
  assert.is((await harden(['--status'])).code, 0)
})

test('holds for a container that is published later', async () => {
  await publish('kgc-later', 6379)
  await sleep(1000)
  await expectOpen(HARDENED, [...PORTS, '6379'])
})

test('with HTTP_FROM=cloudflare, 80 is open to Cloudflare only', async () => {
  const run = await harden(['--yes'], { HTTP_FROM: 'cloudflare' })
  assert.is(run.code, 0, said(run))
  await expectOpen(['admin 22', 'cloudflare 80', 'cloudflare 443'])
  assert.is((await harden(['--yes'])).code, 0)
})

test('tells rules that somebody changed by hand', async () => {
  await onConsole('iptables -I KGC-IN -p tcp --dport 40000 -j ACCEPT')
  const status = await harden(['--status'])
  assert.is(status.code, 1, said(status))
  assert.match(status.stderr, /IPv4: what is active is not what .* says/)
  const run = await harden(['--yes'])
  assert.match(run.stdout, /^- -A KGC-IN -p tcp -m tcp --dport 40000 -j ACCEPT$/m)
  await expectOpen(HARDENED)
})

test('switched off, it stays off when dockerd restarts, and says the way back', async () => {
  const run = await harden(['--off', '--yes'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /Back on: npx tsx scripts\/harden-firewall\.ts/)
  await onConsole('systemctl restart docker')
  await expectOpen(ALL_OPEN)
})

test.run()
