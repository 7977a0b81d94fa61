import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { script, sh } from '../../../lib/shell.ts'
import { answerWith, cloudflareApi, publish } from '../cloudflare-api.ts'
import { docker, local } from '../engine.ts'
import { envWith, onServer, rehearsal, runScript, said } from '../harness.ts'
import { ipv6 } from '../ipv6.ts'
import { NETWORKS, RUNNER_ADDRESS, SERVER, SINK } from '../names.ts'
import {
  askInHalves,
  echoUdp,
  keepTrying,
  listen,
  matrix,
  NEIGHBOR,
  ping,
  probe,
  probeFromSide,
  probeUdp,
  SOURCE_NAMES,
  SOURCES,
  startClients,
  startSide,
  stopClients,
  stopEcho,
  stopListening,
  stopSide,
} from '../packets.ts'
import { inServer, until } from '../server.ts'
import { forgetFirewall, watchByHand } from '../setup.ts'

const test = suite('the firewall, with packets')

/**
 * On each of these something listens, over IPv4 and IPv6: sshd, nginx, programs on the host, and 5432 and 6379 published by
 * mistake.
 */
const PORTS = ['22', '80', '443', '3000', '3001', '5432', '6379', '9090', '2375', '40000']
const ON_HOST = ['3000', '3001', '9090', '2375', '40000']
const LISTENERS = [...ON_HOST.flatMap((port) => [`v4 ${port}`, `v6 ${port}`]), 'v6 80', 'v6 443']
const from = (ports: string[], sources: readonly string[] = SOURCE_NAMES) =>
  sources.flatMap((source) => ports.map((port) => `${source} ${port}`))
const ALL_OPEN = from(PORTS)
const HARDENED = [
  ...from(['22'], ['admin', 'admin6']),
  ...from(['80']),
  ...from(['443'], ['cloudflare', 'cloudflare6']),
]
const UDP = '40001'
const NGINX = 'nginx:1.30-alpine'
/** On a busy machine; about 15 s on one that is not. */
const RESTART_SECONDS = 200
let cells = 0

const expectOpen = async (expected: string[], ports = PORTS) => {
  const found = await matrix(ports)
  cells += found.cells
  assert.equal(found.open.sort(), [...expected].sort())
  assert.equal(found.refused, [])
}

const settings = (changes: Record<string, string> = {}) => ({
  ...{ ADMIN_ADDRESSES: [RUNNER_ADDRESS, SOURCES.admin.address, SOURCES.admin6.address].join() },
  ...{ EXTRA_HTTPS_SOURCES: [NETWORKS.edge.subnet, ipv6(NETWORKS.edge.subnet)].join(), ...changes },
})
const harden = (args: string[], changes: Record<string, string> = {}) =>
  runScript('harden-firewall', ['--env', envWith(settings(changes)), ...args])
/** The server's console: it works whatever the firewall does. */
const onConsole = (text: string) => local.read(inServer(script(text)), { timeout: 120 })
/** By mistake, on both families: the container's network has IPv6. */
const publishContainer = (name: string, ports: number[], address: string) =>
  onConsole(
    `docker run -d --restart unless-stopped --name ${name} --network kgc-test --ip6 ${address} ${ports.map((port) => `-p ${port}:80`).join(' ')} --entrypoint sh ${NGINX} -c 'echo "server { listen 80; listen [::]:80; }" > /etc/nginx/conf.d/default.conf; exec nginx -g "daemon off;"' > /dev/null`,
  )
const MISTAKE = '2001:db8:5432::10'

/** Docker keeps its own rules for IPv6 by default since 27; before, it must be told to. */
const dockerWithIpv6 = `
cp /etc/docker/daemon.json /etc/docker/daemon.json.before-test
sed -i 's/"userland-proxy"/"experimental": true, "ip6tables": true, &/' /etc/docker/daemon.json
systemctl reset-failed docker; systemctl restart docker
docker network create --ipv6 --subnet 172.24.250.0/24 --subnet 2001:db8:5432::/64 kgc-test > /dev/null`
const removeTraces = `
docker rm -f kgc-mistake kgc-later > /dev/null 2>&1 || true
docker network rm kgc-test > /dev/null 2>&1 || true
if [ -e /etc/docker/daemon.json.before-test ]; then
  mv /etc/docker/daemon.json.before-test /etc/docker/daemon.json
  systemctl reset-failed docker; systemctl restart docker
fi
systemctl stop kgc-firewall-revert.timer 2> /dev/null || true`

test.before(async () => {
  await rehearsal()
  // It would take the probes of port 22 for somebody who guesses passwords, also after the server's restart.
  await onConsole(`
systemctl disable -q --now fail2ban
if [ -x /usr/local/sbin/kgc-firewall ]; then /usr/local/sbin/kgc-firewall off; fi
${removeTraces}
${dockerWithIpv6}`)
  await onServer(watchByHand)
  await Promise.all([
    publishContainer('kgc-mistake', [5432, 6379], MISTAKE),
    listen(LISTENERS),
    startClients(),
    startSide(NEIGHBOR),
    echoUdp(UDP),
  ])
  await sleep(1000)
  const version = await onConsole("docker version -f '{{.Server.Version}}'")
  if (Number.parseInt(version, 10) >= 28) straightUnlessDropped = 'filtered'
})

test.after(async () => {
  await onConsole(`systemctl enable -q --now fail2ban${removeTraces}`)
  await onServer(forgetFirewall)
  await Promise.all([stopListening(), stopEcho(), stopClients(), stopSide(NEIGHBOR)])
  console.log(`  ${cells} cells of the matrix were tried`)
})

/** A container's own address: Docker before 28 lets packets through that are routed straight to it. */
const DIRECT = ['172.22.0.10 443', '172.22.0.10 80', `${MISTAKE} 80`]
const probeStraight = () => probeFromSide(NEIGHBOR, DIRECT)
const everywhere = (answer: string) => Object.fromEntries(DIRECT.map((target) => [target, answer]))
/** From 28 on Docker itself drops what is routed straight to a container. */
let straightUnlessDropped = 'open'

test('before, everything is open: the test can see it', async () => {
  await expectOpen(ALL_OPEN)
  for (const source of SOURCE_NAMES) assert.is(await probeUdp(source, UDP), 'open', source)
  assert.equal(await probeStraight(), everywhere(straightUnlessDropped))
  for (const source of ['stranger', 'stranger6'] as const) {
    const stop = keepTrying(source, '5432')
    await sleep(500)
    const { tries, open } = await stop()
    assert.ok(open > 5, `${open} of ${tries}`)
  }
})

test('rules in INPUT alone do not hold for what Docker publishes: the test can see that, too', async () => {
  const inInput = (iptables: string, admin: string, cloudflare: string) => `
${iptables} -N TEST-INPUT
${iptables} -A TEST-INPUT -i lo -j ACCEPT
${iptables} -A TEST-INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
${iptables} -A TEST-INPUT -p tcp --dport 22 -s ${admin} -j ACCEPT
${iptables} -A TEST-INPUT -p tcp --dport 80 -j ACCEPT
${iptables} -A TEST-INPUT -p tcp --dport 443 -s ${cloudflare} -j ACCEPT
${iptables} -A TEST-INPUT -p ipv6-icmp -j ACCEPT
${iptables} -A TEST-INPUT -j DROP
${iptables} -I INPUT -j TEST-INPUT`
  const both = (text: string) => ['iptables', 'ip6tables'].map((tool) => text.replaceAll('TOOL', tool)).join('\n')
  await onConsole(
    inInput('iptables', SOURCES.admin.address, NETWORKS.edge.subnet) +
      inInput('ip6tables', SOURCES.admin6.address, ipv6(NETWORKS.edge.subnet)),
  )
  try {
    // Over IPv6 ports 80 and 443 are listened on by the host itself, where such rules do hold.
    await expectOpen([...HARDENED, ...from(['443'], ['admin', 'stranger']), ...from(['5432', '6379'])])
    assert.equal(await probeStraight(), everywhere(straightUnlessDropped))
  } finally {
    await onConsole(both('TOOL -D INPUT -j TEST-INPUT; TOOL -F TEST-INPUT; TOOL -X TEST-INPUT'))
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
  for (const source of SOURCE_NAMES) {
    assert.is(await probeUdp(source, UDP), 'filtered', source)
    assert.is(await ping(source), 'answered', source)
  }
})

test('applied again and again, it lets nobody in meanwhile, and what was begun goes on', async () => {
  const docker = () => onConsole("iptables-save | grep -v -e KGC -e DOCKER-USER -e '^[#:]'")
  const before = await docker()
  const stops = [keepTrying('stranger', '443'), keepTrying('admin6', '5432')]
  const held = askInHalves('cloudflare', 5)
  await onConsole('for n in $(seq 20); do /usr/local/sbin/kgc-firewall apply; done')
  assert.match(await held, /^HTTP\/1\.1 /)
  for (const stop of stops) {
    const { tries, open } = await stop()
    assert.is(open, 0, `${open} of ${tries} tries got in`)
    assert.ok(tries > 10, `only ${tries} tries`)
    cells += tries
  }
  assert.is(await docker(), before)
})

test('nobody gets in straight at a container, nor do containers lose their way', async () => {
  assert.equal(await probeStraight(), everywhere('filtered'))
  await onConsole(`
docker exec kgc-nginx-proxy-1 curl -fsS -m 5 -o /dev/null http://172.20.6.10:3000/ ||
  docker exec kgc-nginx-proxy-1 curl -fsS -m 5 -o /dev/null http://172.20.6.11:3000/
docker exec kgc-nginx-proxy-1 curl -fsS -m 5 -o /dev/null ${SINK.url}/messages`)
})

/** A weaker rule set must show: else a test that passes says nothing. */
const straightAt = (targets: string[]) => targets.map((target) => `neighbor ${target}`)
const [V4, V6] = [straightAt(DIRECT.slice(0, 2)), straightAt(DIRECT.slice(2))]
const NO_END = '/^-A \\(DOCKER-USER\\|KGC-FORWARD\\) .* -j DROP$/d'
const MUTANTS: [string, 4 | 6, string, string[]][] = [
  ['no `--ctstate DNAT`', 4, 's/ --ctstate DNAT//', V4],
  ['no end of what is forwarded', 4, NO_END, [...from(['5432', '6379'], ['admin', 'cloudflare', 'stranger']), ...V4]],
  [
    'no end of what is forwarded',
    6,
    NO_END,
    [...from(['5432', '6379'], ['admin6', 'cloudflare6', 'stranger6']), ...V6],
  ],
  ['no end of KGC-CF', 4, '/^-A KGC\\(-FORWARD\\)*-CF -j DROP$/d', from(['443'], ['admin', 'stranger'])],
  ['443 without KGC-CF', 6, '/ --dport 443 -j KGC-CF$/d', from(['443'], ['admin6', 'stranger6'])],
  [
    '22 without its source',
    4,
    's/ -s [^ ]* -p tcp --dport 22 / -p tcp --dport 22 /',
    from(['22'], ['cloudflare', 'stranger']),
  ],
  [
    'no end of KGC-IN, nor a policy',
    6,
    '/^-A KGC-IN -j DROP$/d; s/^:INPUT DROP/:INPUT ACCEPT/',
    from(['22', ...ON_HOST], ['cloudflare6', 'stranger6']).concat(from(ON_HOST, ['admin6'])),
  ],
]
for (const [what, family, change, seen] of process.env.SOAK ? MUTANTS : MUTANTS.slice(1, 3)) {
  test(`sees IPv${family} rules with ${what}`, async () => {
    await onConsole(`
mkdir -p /run/kgc-firewall/next && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/next/
sed -i '${change}' /run/kgc-firewall/next/rules.v${family}
/usr/local/sbin/kgc-firewall try 60`)
    const [straight, { open }] = await Promise.all([probeStraight(), matrix(PORTS)])
    await onConsole('/usr/local/sbin/kgc-firewall revert')
    cells += DIRECT.length + SOURCE_NAMES.length * PORTS.length
    assert.equal(
      [
        ...open.filter((cell) => !HARDENED.includes(cell)),
        ...straightAt(DIRECT.filter((target) => straight[target] === 'open')),
      ].sort(),
      seen.filter((cell) => straightUnlessDropped === 'open' || !cell.startsWith('neighbor ')).sort(),
    )
  })
}

test('rules that the kernel refuses leave the old ones as they are', async () => {
  const rules = 'iptables-save | grep -v "^[#:]"; ip6tables-save | grep -v "^[#:]"'
  const before = await onConsole(rules)
  for (const family of [4, 6]) {
    const tried = await onConsole(`
mkdir -p /run/kgc-firewall/next && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/next/
sed -i 's/-A KGC-IN -j DROP/-A KGC-IN -j NONSENSE/' /run/kgc-firewall/next/rules.v${family}
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
  await expectOpen(['stranger 22', ...HARDENED.slice(2)])
  await sleep(7000)
  await expectOpen(HARDENED)
  assert.is((await harden(['--status'])).code, 0)
})

test("holds without the jump into Docker's chain, which dockerd 29 puts behind its own ones while it starts", async () => {
  await onConsole('for tool in iptables ip6tables; do $tool -D FORWARD -j DOCKER-USER; done')
  await expectOpen(HARDENED)
  assert.is((await harden(['--status'])).code, 1)
  await onConsole('/usr/local/sbin/kgc-firewall apply')
  assert.is((await harden(['--status'])).code, 0)
})

test('holds during and after a restart of dockerd', async () => {
  const stops = [keepTrying('stranger', '443'), keepTrying('admin6', '5432')]
  await onConsole('systemctl reset-failed docker; systemctl restart docker')
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
  await publishContainer('kgc-later', [27017], '2001:db8:5432::11')
  await sleep(1000)
  assert.match(await onConsole('ip6tables -t nat -S; iptables -t nat -S'), /dport 27017 [\s\S]*dport 27017 /)
  await expectOpen(HARDENED, [...PORTS, '27017'])
})

test('with HTTP_FROM=cloudflare, 80 is open to Cloudflare only', async () => {
  const run = await harden(['--yes'], { HTTP_FROM: 'cloudflare' })
  assert.is(run.code, 0, said(run))
  await expectOpen([...from(['22'], ['admin', 'admin6']), ...from(['80', '443'], ['cloudflare', 'cloudflare6'])])
  assert.is((await harden(['--yes'])).code, 0)
})

test("holds after a refresh of Cloudflare's ranges", async () => {
  const api = await cloudflareApi()
  try {
    const run = await harden(['--yes'], { CLOUDFLARE_RANGES_FILE: '', CLOUDFLARE_IPS_URL: api.url })
    assert.is(run.code, 0, said(run))
    api.says(answerWith(publish(['192.88.99.0/24', '3ffe:5432::/32'])))
    await onConsole('/usr/local/sbin/kgc-cloudflare refresh')
    assert.match(await onConsole('iptables -S KGC-CF; ip6tables -S KGC-CF'), /192\.88\.99\.0[\s\S]*3ffe:5432::/)
    await expectOpen(HARDENED)
  } finally {
    await api.stop()
  }
})

test('is there before anything else after a restart of the server', async () => {
  const stops = [keepTrying('stranger', '443'), keepTrying('admin6', '5432'), keepTrying('cloudflare', '22')]
  await docker(sh`restart -t 60 ${SERVER.container}`)
  await until(
    async () =>
      (
        await local.probe(
          inServer(
            sh`systemctl is-active ssh && systemctl is-active docker && curl -fsS -m 2 -o /dev/null ${`http://[${MISTAKE}]`}`,
          ),
        )
      ).code === 0,
    'the server, and what is published on it by mistake',
    RESTART_SECONDS,
  )
  await Promise.all([listen(LISTENERS), startSide(NEIGHBOR)])
  await until(async () => (await probe('cloudflare', ['443']))[443] === 'open', 'nginx', RESTART_SECONDS)
  for (const stop of stops) {
    const { tries, open } = await stop()
    assert.is(open, 0, `${open} of ${tries} tries got in`)
    assert.ok(tries > 20, `only ${tries} tries`)
    cells += tries
  }
  await expectOpen(HARDENED)
  assert.equal(await probeStraight(), everywhere('filtered'))
  assert.is((await harden(['--status'])).code, 0)
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
  await onConsole('systemctl reset-failed docker; systemctl restart docker')
  await sleep(1000)
  await expectOpen(ALL_OPEN)
})

test.run()
