import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { script } from '../../../lib/shell.ts'
import { local } from '../engine.ts'
import { clearSink, envWith, onServer, rehearsal, runScript, said, sinkMessages } from '../harness.ts'
import { RUNNER_ADDRESS, SERVER } from '../names.ts'
import { listen, probeFromSide, type Side, startSide, stopListening, stopSide } from '../packets.ts'
import { inServer } from '../server.ts'
import { forgetFirewall, watchByHand } from '../setup.ts'

const test = suite('the firewall stays what its files say, and refuses what it cannot hold with')

/** A machine on a private network of the server's, which is neither an admin's nor Cloudflare's. */
const PEER: Side = { name: 'peer', device: 'kgc-wg0', address: '203.0.113.9', address6: '2001:db8:9::9' }
const GATEWAY6 = '2001:db8::c000:201'
const SSH = [`${SERVER.address} 22`, `${GATEWAY6} 22`]
const REST = [`${SERVER.address} 443`, `${SERVER.address} 3000`, `${GATEWAY6} 3000`]
const all = (answer: string, targets: string[]) => Object.fromEntries(targets.map((target) => [target, answer]))

const harden = (args: string[] = ['--yes'], changes: Record<string, string> = {}) =>
  runScript('harden-firewall', ['--env', envWith({ ADMIN_ADDRESSES: RUNNER_ADDRESS, ...changes }), ...args])
const onConsole = (text: string) => local.read(inServer(script(text)), { timeout: 120 })
const rules = () =>
  onConsole('for tool in iptables ip6tables; do $tool -S; $tool -t mangle -S; done; iptables -t nat -S KGC-FRONT-DOOR')
/** As Prometheus gets it. */
const metric = () => onConsole('curl -fsS -m 5 http://172.20.7.17:9100/metrics | grep "^kgc_firewall_ok"')
const told = async () => (await sinkMessages()).map(({ body }) => body.text).join('\n')

test.before(async () => {
  await rehearsal()
  // It would take the probes of port 22 for somebody who guesses passwords.
  await onConsole('systemctl stop fail2ban')
  await onServer(watchByHand)
  await Promise.all([startSide(PEER), listen(['v4 3000', 'v6 3000'])])
  const run = await harden()
  assert.is(run.code, 0, said(run))
})

test.after(async () => {
  await onConsole(`
systemctl start fail2ban
rm -f /usr/local/bin/ufw /usr/local/bin/docker
rm -f /run/systemd/system/firewalld.service; systemctl daemon-reload
systemctl reset-failed kgc-firewall.service 2> /dev/null || true`)
  await onServer(forgetFirewall)
  await Promise.all([stopSide(PEER), stopListening()])
})

test('every five minutes it looks, puts right what somebody changed, and tells it', async () => {
  assert.match(await onConsole('systemctl list-timers --no-pager'), /kgc-firewall-watch\.timer/)
  await clearSink()
  await onConsole('systemctl start kgc-firewall-watch.service')
  assert.is(await metric(), 'kgc_firewall_ok 1')
  assert.is(await told(), '')
  const before = await rules()
  for (const change of [
    'iptables -I KGC-IN -p tcp --dport 3000 -j ACCEPT',
    'ip6tables -D INPUT -j KGC-IN',
    'iptables -F DOCKER-USER',
    'iptables -t mangle -F KGC-FORWARD',
    'ip6tables -t mangle -D FORWARD -j KGC-FORWARD',
    'iptables -P INPUT ACCEPT',
    'iptables -t nat -F KGC-FRONT-DOOR',
    'iptables -D FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-USER',
  ]) {
    await onConsole(`${change}; rm -rf /run/kgc-tell`)
    assert.is.not(await rules(), before, change)
    await clearSink()
    await onConsole('kgc-firewall watch')
    assert.is(await rules(), before, change)
    assert.match(await told(), /firewall: IPv[46]: what is active is not what .* says\nIt has been put right\./, change)
  }
  assert.is(await metric(), 'kgc_firewall_ok 1')
  assert.match(
    await onConsole('curl -fsS -m 5 http://172.20.7.10:9090/api/v1/rules'),
    /"FirewallNotActive".*"CloudflareRangesOld"/,
  )
})

test('while Slack does not answer, the rules can be changed all the same', async () => {
  const answer = await onConsole(`
mv /etc/kgc/slack-webhook /tmp/slack-webhook; echo http://127.0.0.1:1/ > /etc/kgc/slack-webhook
iptables -P INPUT ACCEPT; rm -rf /run/kgc-tell
systemctl start --no-block kgc-firewall-watch.service
for try in $(seq 100); do iptables -S INPUT | grep -qx -e "-P INPUT ACCEPT" || break; sleep 0.1; done
sleep 1
timeout 3 kgc-firewall apply && systemctl show -P ActiveState kgc-firewall-watch.service
systemctl stop kgc-firewall-watch.service; mv /tmp/slack-webhook /etc/kgc/slack-webhook; rm -rf /run/kgc-tell`)
  assert.is(answer, 'activating')
})

test('an address that is let in on the console gets in until the server looks again', async () => {
  await onConsole(`iptables -I KGC-IN -p tcp --dport 22 -s ${PEER.address} -j ACCEPT`)
  const [overV4 = ''] = SSH
  assert.equal(await probeFromSide(PEER, [overV4]), all('open', [overV4]))
  await onConsole('kgc-firewall watch')
  assert.equal(await probeFromSide(PEER, [overV4]), all('filtered', [overV4]))
})

test("somebody else's rule before ours is told, and does not stay before them", async () => {
  const rule = `INPUT -s ${PEER.address} -p tcp --dport 22 -j ACCEPT`
  const [overV4 = ''] = SSH
  await onConsole(`iptables -I ${rule}`)
  assert.equal(await probeFromSide(PEER, [overV4]), all('open', [overV4]))
  assert.is((await harden(['--status'])).code, 1)
  await onConsole('kgc-firewall watch')
  assert.equal(await probeFromSide(PEER, [overV4]), all('filtered', [overV4]))
  assert.is((await harden(['--status'])).code, 0)
  await onConsole(`iptables -D ${rule}`)
})

test('leaves rules alone that wait to be tried or are being tried, and ends a try whose timer is gone', async () => {
  const before = await rules()
  await onConsole(`
install -d -m 700 /run/kgc-firewall/next && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/next/
sed -i 's/-A KGC-IN -j DROP/-A KGC-IN -p tcp --dport 3000 -j ACCEPT\\n&/' /run/kgc-firewall/next/rules.v4
kgc-firewall watch; kgc-firewall try 60; kgc-firewall watch`)
  const tried = await rules()
  assert.match(tried, /--dport 3000/)
  await onConsole('systemctl stop kgc-firewall-revert.timer; kgc-firewall watch')
  assert.is(await rules(), before)
})

test('rules that were confirmed but could not be kept still go back', async () => {
  const before = await rules()
  const said = await onConsole(`
install -d -m 700 /run/kgc-firewall/next && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/next/
sed -i 's/-A KGC-IN -j DROP/-A KGC-IN -p tcp --dport 3000 -j ACCEPT\\n&/' /run/kgc-firewall/next/rules.v4
kgc-firewall try 60
printf '#!/bin/sh\\nexit 1\\n' > /usr/local/sbin/sync; chmod 755 /usr/local/sbin/sync
kgc-firewall confirm 2> /dev/null || echo 'not confirmed'
rm /usr/local/sbin/sync
systemctl is-active kgc-firewall-revert.timer
kgc-firewall revert`)
  assert.match(said, /not confirmed\nactive$/)
  assert.is(await rules(), before)
})

test('one run does not confirm the rules of another', async () => {
  const before = await rules()
  const said = await onConsole(`
for run in one other; do
  install -d -m 700 /run/kgc-firewall/next-$run && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/next-$run/
done
sed -i 's/-A KGC-IN -j DROP/-A KGC-IN -p tcp --dport 3000 -j ACCEPT\\n&/' /run/kgc-firewall/next-other/rules.v4
kgc-firewall try 60 one; kgc-firewall try 60 other
kgc-firewall confirm one 2>&1 || kgc-firewall confirm 2>&1 || kgc-firewall revert`)
  assert.match(said, /(another run tries its own rules meanwhile[\s\S]*){2}$/)
  assert.is(await rules(), before)
})

/** What the unit does at boot, and after what: with nothing in the kernel. */
const atBoot = (change: string) =>
  onConsole(`
for tool in iptables ip6tables; do $tool -P INPUT ACCEPT; $tool -D INPUT -j KGC-IN; $tool -F KGC-IN; $tool -F DOCKER-USER; $tool -t mangle -F; done
systemctl stop kgc-firewall.service
rm -rf /tmp/kept && cp -a /etc/kgc/firewall /tmp/kept
${change}
systemctl start kgc-firewall.service 2> /dev/null && echo started || journalctl -u kgc-firewall -n 20 --no-pager -o cat`)
const putBack = () =>
  onConsole('rm -rf /etc/kgc/firewall && mv /tmp/kept /etc/kgc/firewall; systemctl start kgc-firewall.service')

test('at boot, rules that cannot be loaded give way to their copy', async () => {
  const before = await rules()
  for (const damage of [
    ': > /etc/kgc/firewall/rules.v6',
    'sed -i 5q /etc/kgc/firewall/rules.v4',
    'rm /etc/kgc/firewall/rules.v?',
  ]) {
    const output = await atBoot(damage)
    assert.match(output, /cannot be loaded; its copy is active/, damage)
    assert.is(await rules(), before, damage)
    await putBack()
  }
  assert.is(await atBoot('true'), 'started')
  await onConsole('rm -rf /tmp/kept')
})

test('so it is when a try is not confirmed, and what could not be put back is tried again', async () => {
  const before = await rules()
  const said = await onConsole(`
install -d -m 700 /run/kgc-firewall/next && cp /etc/kgc/firewall/rules.v? /run/kgc-firewall/next/
sed -i 's/-A KGC-IN -j DROP/-A KGC-IN -p tcp --dport 3000 -j ACCEPT\\n&/' /run/kgc-firewall/next/rules.v4
printf '#!/bin/sh\\nexit 1\\n' > /tmp/refuses; chmod 755 /tmp/refuses
kgc-firewall try 2 > /dev/null
rm -rf /tmp/kept; cp -a /etc/kgc/firewall /tmp/kept; : > /etc/kgc/firewall/rules.v6; cp /tmp/refuses /usr/local/sbin/iptables-restore
sleep 5
rm /usr/local/sbin/iptables-restore
iptables -S KGC-IN | grep -c 'dport 3000'
for try in $(seq 40); do iptables -S KGC-IN | grep -q 'dport 3000' || break; sleep 0.5; done`)
  assert.is(said, '1')
  assert.is(await rules(), before)
  await putBack()
})

test('when those cannot be loaded either, all is closed but SSH, so that nobody is locked out, and it is told', async () => {
  const output = await atBoot(
    'for file in /etc/kgc/firewall/rules.v? /etc/kgc/firewall/copy/rules.v?; do echo nonsense > $file; done',
  )
  assert.match(output, /all is closed but SSH/)
  assert.equal(await probeFromSide(PEER, [...SSH, ...REST]), { ...all('open', SSH), ...all('filtered', REST) })
  assert.is((await runScript('smoke-test', ['--http-only'])).code, 1)
  await onConsole('docker exec kgc-nginx-proxy-1 curl -fsS -m 5 -o /dev/null http://172.20.7.13:3004/api/health')
  await clearSink()
  await onConsole('kgc-firewall watch || true')
  assert.match(await told(), /could not be put right/)
  assert.is(await metric(), 'kgc_firewall_ok 0')
  // The way back is the same script as always, over SSH.
  const run = await harden()
  assert.is(run.code, 0, said(run))
  assert.equal(await probeFromSide(PEER, SSH), all('filtered', SSH))
  assert.is((await runScript('smoke-test', ['--http-only'])).code, 0)
})

test('dockerd starts behind rules only: what is missing is put there first, and what cannot be holds it back', async () => {
  const before = await rules()
  assert.match(await onConsole('systemctl show -P ExecStartPre docker'), /kgc-firewall guard/)
  const missing =
    'for tool in iptables ip6tables; do $tool -D INPUT -j KGC-IN; $tool -t mangle -D FORWARD -j KGC-FORWARD; done'
  await onConsole(`${missing}; kgc-firewall guard`)
  assert.is(await rules(), before)
  const answers = await onConsole(`
${missing}
printf '#!/bin/sh\\nexit 1\\n' > /usr/local/sbin/ip6tables-restore; chmod 755 /usr/local/sbin/ip6tables-restore
kgc-firewall guard 2> /dev/null && echo starts || echo 'held back'
touch /etc/kgc/firewall/off; kgc-firewall guard && echo starts; rm /etc/kgc/firewall/off
rm /usr/local/sbin/ip6tables-restore; kgc-firewall guard && echo starts`)
  assert.is(answers, 'held back\nstarts\nstarts')
  assert.is(await rules(), before)
})

test('SSH_ALLOW_INTERFACES opens SSH on a private interface, whoever asks, and nothing else', async () => {
  assert.equal(await probeFromSide(PEER, [...SSH, ...REST]), all('filtered', [...SSH, ...REST]))
  const run = await harden(['--yes'], { SSH_ALLOW_INTERFACES: PEER.device })
  assert.is(run.code, 0, said(run))
  assert.equal(await probeFromSide(PEER, [...SSH, ...REST]), { ...all('open', SSH), ...all('filtered', REST) })
  const outside = await harden(['--yes'], { SSH_ALLOW_INTERFACES: 'eth0' })
  assert.is(outside.code, 1, said(outside))
  assert.match(outside.stderr, /eth0, which leads to the internet/)
})

/** The signs by which each is known. ufw and firewalld are not in the rehearsal's image. */
const OTHERS: [string, string, string, RegExp][] = [
  [
    'ufw',
    `printf '#!/bin/sh\\necho "Status: active"\\n' > /usr/local/bin/ufw; chmod 755 /usr/local/bin/ufw`,
    'rm /usr/local/bin/ufw',
    /ufw is active, .*: ufw disable/,
  ],
  [
    'firewalld',
    `printf '[Service]\\nExecStart=/bin/sleep 600\\n' > /run/systemd/system/firewalld.service; systemctl daemon-reload; systemctl start firewalld`,
    'systemctl stop firewalld; rm /run/systemd/system/firewalld.service; systemctl daemon-reload',
    /firewalld is active: systemctl disable --now firewalld/,
  ],
  [
    'netfilter-persistent',
    `printf '[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/netfilter-persistent.service; systemctl enable -q netfilter-persistent`,
    'systemctl disable -q netfilter-persistent; rm /etc/systemd/system/netfilter-persistent.service; systemctl daemon-reload',
    /netfilter-persistent flushes Docker's rules and these when it starts: systemctl disable netfilter-persistent/,
  ],
  [
    'rules of iptables-legacy',
    `printf '#!/bin/sh\\necho "-A INPUT -j ACCEPT"\\n' > /usr/local/bin/iptables-legacy-save; chmod 755 /usr/local/bin/iptables-legacy-save`,
    'rm /usr/local/bin/iptables-legacy-save',
    /rules of iptables-legacy, which work beside these unseen/,
  ],
  [
    'a dockerd with nftables',
    `printf '#!/bin/sh\\n[ "$1" != info ] || { echo nftables+firewalld; exit; }\\nexec /usr/bin/docker "$@"\\n' > /usr/local/bin/docker; chmod 755 /usr/local/bin/docker`,
    'rm /usr/local/bin/docker',
    /dockerd uses nftables, which ignores DOCKER-USER/,
  ],
]
test('refuses to work beside another firewall, with what to type', async () => {
  const before = await rules()
  for (const [what, start, stop, refusal] of OTHERS) {
    await onConsole(start)
    const run = await harden(['--yes', '--force']).finally(() => onConsole(stop))
    assert.is(run.code, 1, `${what}: ${said(run)}`)
    assert.match(run.stderr, refusal, what)
  }
  assert.is(await rules(), before)
})

test('refuses an admin list that is empty, a name, everybody, or a slip in IPv6', async () => {
  const before = await rules()
  for (const [list, refusal] of [
    ['', /ADMIN_ADDRESSES is not set/],
    ['vpn.kgc-erp.hu', /ADMIN_ADDRESSES is wrong in entry 1: it is not an IP address/],
    ['0.0.0.0/0', /ADMIN_ADDRESSES is wrong in entry 1: it is wider than/],
    [`${RUNNER_ADDRESS},2001:db8:::5/64`, /ADMIN_ADDRESSES is wrong in entry 2: it is not an IP address/],
    [`${RUNNER_ADDRESS},2001:db8::5/64`, /ADMIN_ADDRESSES is wrong in entry 2: it has bits set/],
  ] as const) {
    const run = await harden(['--yes'], { ADMIN_ADDRESSES: list })
    assert.is(run.code, 2, said(run))
    assert.match(run.stderr, refusal)
  }
  assert.is(await rules(), before)
})

test('--off stops what looks after it, too; on the console `kgc-firewall on` is the way back', async () => {
  const run = await harden(['--off', '--yes'])
  assert.is(run.code, 0, said(run))
  assert.not.match(await onConsole('systemctl list-timers --all --no-pager'), /kgc-(firewall|cloudflare)/)
  assert.is(await metric(), 'kgc_firewall_ok 0')
  await onConsole('systemctl restart kgc-firewall.service')
  assert.equal(await probeFromSide(PEER, [...SSH, ...REST]), all('open', [...SSH, ...REST]))
  await onConsole('kgc-firewall on')
  assert.is((await harden(['--status'])).code, 0)
  assert.match(await onConsole('systemctl list-timers --no-pager'), /kgc-firewall-watch/)
  assert.equal(await probeFromSide(PEER, REST), all('filtered', REST))
})

test.run()
