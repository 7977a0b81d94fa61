import { mkdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { chain, script, sh } from '../../../lib/shell.ts'
import { answerWith, cloudflareApi, publish } from '../cloudflare-api.ts'
import { local } from '../engine.ts'
import {
  ask,
  clearSink,
  envWith,
  onServer,
  rehearsal,
  runScript,
  said,
  secretsInOutput,
  serverRead,
  sinkMessages,
} from '../harness.ts'
import { DOMAIN, inState, RUNNER_ADDRESS, SERVER } from '../names.ts'
import { listen, probeFromSide, type Side, startSide, stopListening, stopSide } from '../packets.ts'
import { inServer, until } from '../server.ts'
import { forgetFirewall } from '../setup.ts'

const test = suite("Cloudflare's ranges, and what nginx believes and wants")

/** Ranges that are nobody's any more (RFC 7526, RFC 3701), which Cloudflare may therefore publish here. */
const ADDED = ['192.88.99.0/24', '3ffe:5432::/32']
/** A machine of Cloudflare's that has an address in each, beside the server. */
const POP: Side = { name: 'pop', device: 'kgc-pop', address: '192.88.99.7', address6: '3ffe:5432::7' }
const DOORS = [`${SERVER.address} 443`, '2001:db8::c000:201 443']
/** Everything else that is asked for, and whether Cloudflare gets it. A port on which nobody listens would answer `refused`. */
const REST = ['22', '80', '3000', '3001', '5432', '6379', '9090', '2375', '40000'].flatMap((port) =>
  DOORS.map((door) => [door.replace('443', port), port === '80' ? 'open' : 'filtered'] as const),
)

let api: Awaited<ReturnType<typeof cloudflareApi>>
const onConsole = (text: string) => local.read(inServer(script(text)), { timeout: 120 })
const harden = (changes: Record<string, string> = {}) =>
  runScript('harden-firewall', [
    '--env',
    envWith({ CLOUDFLARE_RANGES_FILE: '', CLOUDFLARE_IPS_URL: api.url, ...changes }),
    '--yes',
  ])
/** What the server's timer runs once a day. */
const refresh = () => local.probe(inServer(sh`/usr/local/sbin/kgc-cloudflare refresh`), { timeout: 60 })
const list = () => onConsole('kgc-firewall list')
const everything = () =>
  onConsole(
    'iptables -S; ip6tables -S; kgc-firewall list; cat /opt/kgc/state/nginx/*.conf; cat /etc/kgc/firewall/rules.v?',
  )
const metric = (name: string) => onConsole(`cat /opt/kgc/state/metrics/*.prom | sed -n 's/^${name} //p'`)
const told = async () => (await sinkMessages()).map(({ body }) => body.text)
/** Asks a site from Cloudflare's machine. */
const fromPop = (path: string, args: string[] = [], sub = '') =>
  local.read(
    inServer(
      sh`ip netns exec pop curl -s -k -m 10 --resolve ${`${sub}${DOMAIN}:443:${SERVER.address}`} ${args} ${`https://${sub}${DOMAIN}${path}`}`,
    ),
  )
const statusFromPop = (args: string[] = []) =>
  fromPop('/api/health', ['-o', '/dev/null', '-w', '%{http_code}', ...args]).catch(() => 'refused')

test.before(async () => {
  await rehearsal()
  api = await cloudflareApi()
  await Promise.all([startSide(POP), listen(['v6 80', 'v6 443'])])
  await onConsole('rm -f /var/lib/kgc/cloudflare-*')
  await clearSink()
})

test.after(async () => {
  await api.stop()
  await onConsole('rm -rf /etc/kgc/nginx/origin-* /opt/kgc/state/nginx/origin-*')
  await onServer(forgetFirewall)
  await Promise.all([stopSide(POP), stopListening()])
})

test('applies what Cloudflare publishes, and what is known already when it cannot be asked', async () => {
  const first = await harden()
  assert.is(first.code, 0, said(first))
  assert.not.match(first.stderr, /could not be asked/)
  assert.is((await list()).split('\n').length, 22)
  api.says({ status: 503, body: 'no' })
  const run = await harden()
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /could not be asked for its ranges; those of the server are used\.\nHTTP 503/)
  assert.match(run.stderr, /IPv4: nothing changes/)
})

test('from then on the server asks by itself every day, and tells Slack, by a secret that only root can read', async () => {
  assert.match(await onConsole('systemctl list-timers --no-pager'), /kgc-cloudflare\.timer/)
  assert.is(await onConsole('stat -c "%a %U" /etc/kgc/slack-webhook'), '600 root')
  assert.equal(secretsInOutput(), [])
})

test('lets nobody in from ranges that Cloudflare does not publish', async () => {
  assert.equal(await probeFromSide(POP, DOORS), Object.fromEntries(DOORS.map((door) => [door, 'filtered'])))
})

test('what Cloudflare adds is open at once, over IPv4 and IPv6, believed by nginx, and told', async () => {
  api.says(answerWith(publish(ADDED)))
  const run = await refresh()
  assert.is(run.code, 0, run.stderr)
  assert.equal(await probeFromSide(POP, DOORS), Object.fromEntries(DOORS.map((door) => [door, 'open'])))
  const rest = REST.map(([target]) => target)
  assert.equal(await probeFromSide(POP, rest), Object.fromEntries(REST))
  for (const range of ADDED) {
    assert.match(await list(), range)
    assert.match(await onConsole('cat /opt/kgc/state/nginx/cloudflare.conf'), `set_real_ip_from ${range};`)
  }
  assert.match((await told()).join('\n'), /ranges changed[\s\S]*\+ 192\.88\.99\.0\/24/)
  assert.is(await metric('kgc_cloudflare_ranges_ok'), '1')
  assert.ok(
    Math.abs(Number(await metric('kgc_cloudflare_ranges_last_success_timestamp_seconds')) - Date.now() / 1000) < 60,
  )
  assert.is((await runScript('harden-firewall', ['--env', envWith({}), '--status'])).code, 0)
})

test('believes a visitor address from those ranges only, also an IPv6 one', async () => {
  for (const visitor of ['192.0.2.77', '2001:db8:77::1']) {
    const believed = JSON.parse(await fromPop('/api/whoami', ['-H', `CF-Connecting-IP: ${visitor}`]))
    assert.is(believed.address, visitor)
    // Allowed past Cloudflare, and not believed.
    const direct = await ask(undefined, { path: '/api/whoami', headers: { 'cf-connecting-ip': visitor } })
    assert.is(JSON.parse(direct.body).address, RUNNER_ADDRESS)
  }
})

/** What may be in such a list is judged in the unit tests. */
const DOUBTS: [string, Parameters<typeof api.says>[0], RegExp][] = [
  ['an HTML page', { status: 200, body: '<html>Just a moment...</html>' }, /not the JSON that Cloudflare documents/],
  ['an error', { status: 403, body: '{"success":false}' }, /HTTP 403/],
  ['a way to elsewhere', { status: 302, headers: { location: '/client/v4/ips' }, body: '' }, /HTTP 302/],
  ['everybody', answerWith(publish([...ADDED, '0.0.0.0/0'])), /0\.0\.0\.0\/0 is not between/],
  ['more than a list can be', { status: 200, body: 'x'.repeat(100_000) }, /could not be fetched: curl: \(63\)/],
]
test('keeps all as it is on any doubt, and tells each once', async () => {
  const before = await everything()
  for (const [what, answer, doubt] of DOUBTS) {
    api.says(answer)
    await clearSink()
    assert.is.not((await refresh()).code, 0, what)
    const [message = '', ...more] = await told()
    assert.match(message, doubt, what)
    assert.equal(more, [], what)
    assert.is(await metric('kgc_cloudflare_ranges_ok'), '0', what)
  }
  await clearSink()
  await refresh()
  assert.equal(await told(), [])
  assert.is(await everything(), before)
  api.says(answerWith(publish(ADDED)))
  assert.is((await refresh()).code, 0)
  assert.match((await told()).join(), /cloudflare: all is well again/)
})

test('a doubt is told once, and whatever else ends the daily look is told, too', async () => {
  const daily = () => local.probe(inServer(sh`systemctl start kgc-cloudflare.service`), { timeout: 60 })
  api.says({ status: 403, body: 'no' })
  await clearSink()
  assert.is((await daily()).code, 0)
  api.says(answerWith(publish(ADDED)))
  await onConsole('mv /etc/kgc/firewall/rules.v6 /tmp/rules.v6')
  assert.is.not((await daily().finally(() => onConsole('mv /tmp/rules.v6 /etc/kgc/firewall/rules.v6'))).code, 0)
  await until(async () => (await told()).length > 1, 'the message', 15)
  const [doubt = '', death = '', ...more] = await told()
  assert.match(doubt, /could not be fetched: HTTP 403/)
  assert.match(death, /kgc-cloudflare failed on/)
  assert.equal(more, [])
  assert.is((await refresh()).code, 0)
})

test('removes what is missing twice, a day apart, and not what came back meanwhile', async () => {
  const age = (hours: number) =>
    onConsole(
      `awk '{ print $1, $2 - ${hours * 3600} }' /var/lib/kgc/cloudflare-missing > /tmp/m && cp /tmp/m /var/lib/kgc/cloudflare-missing`,
    )
  const [gone = ''] = ADDED
  const without = answerWith(publish(ADDED.slice(1)))
  const stays = async (answer: typeof without) => {
    api.says(answer)
    assert.is((await refresh()).code, 0)
    assert.match(await list(), gone)
  }
  await stays(without)
  await stays(without)
  await age(23)
  await stays(without)
  await stays(answerWith(publish(ADDED)))
  await age(25)
  await stays(without)
  await age(25)
  api.says(without)
  assert.is((await refresh()).code, 0)
  assert.not.match(await list(), gone)
  assert.not.match(await onConsole('cat /opt/kgc/state/nginx/cloudflare.conf'), gone)
  assert.is(await statusFromPop(), 'refused')
  await stays(answerWith(publish(ADDED)))
})

test('what nginx refuses is put back', async () => {
  const before = await everything()
  await onConsole('echo "nonsense;" > /etc/kgc/nginx/origin-http.conf')
  const run = await refresh()
  assert.is.not(run.code, 0)
  assert.match((await told()).pop() ?? '', /nginx did not take .*: it was put back\. nginx said: .*nonsense/)
  assert.is(await everything(), before)
  await onConsole(
    'rm /etc/kgc/nginx/origin-http.conf; docker exec kgc-nginx-proxy-1 nginx -q -t -c /etc/nginx/kgc/nginx.conf',
  )
  assert.is((await refresh()).code, 0)
})

test('nginx is not reloaded while a deploy is changing its files', async () => {
  const answer = await onConsole(`
cd /opt/kgc/state
echo '# stale' >> nginx/cloudflare.conf
flock deploy.lock sleep 3 &
sleep 0.5
kgc-cloudflare nginx &
sleep 1.5
grep -c stale nginx/cloudflare.conf
wait
grep -c stale nginx/cloudflare.conf || true`)
  assert.is(answer, '1\n0')
})

/** Two authorities with a client's certificate each. */
async function makeAuthorities(): Promise<void> {
  mkdirSync(inState('origin'), { recursive: true })
  for (const [name, subject] of [
    ['ours', '/CN=KGC origin pulls'],
    ['others', '/CN=Somebody else'],
    ['global', '/O=CloudFlare, Inc./CN=origin-pull.cloudflare.net'],
  ] as const) {
    const file = (kind: string) => inState(`origin/${name}-${kind}`)
    await local.read(
      chain(
        sh`openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj ${subject} -keyout ${file('ca.key')} -out ${file('ca.pem')} 2> /dev/null`,
        sh`openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=client -keyout ${file('client.key')} -out ${file('client.csr')} 2> /dev/null`,
        sh`openssl x509 -req -in ${file('client.csr')} -CA ${file('ca.pem')} -CAkey ${file('ca.key')} -days 30 -out ${file('client.pem')} 2> /dev/null`,
      ),
    )
    await onServer(async (host) => {
      const content = await local.read(sh`cat ${file('client.key')} ${file('client.pem')}`)
      await host.write(sh`cat > ${`/tmp/${name}.pem`}`, { input: content })
    })
  }
}

test('refuses what is not our own authority, before anything is touched', async () => {
  await makeAuthorities()
  writeFileSync(inState('origin/both.pem'), '-----BEGIN CERTIFICATE-----\n'.repeat(2))
  for (const [file, why] of [
    ['ours-ca.key', /is not one certificate as PEM/],
    ['both.pem', /is not one certificate as PEM/],
    ['ours-client.pem', /is not the certificate of an authority/],
    ['global-ca.pem', /is Cloudflare's own/],
  ] as const) {
    const run = await harden({ ORIGIN_PULL_CA_FILE: `origin/${file}` })
    assert.is(run.code, 2, said(run))
    assert.match(run.stderr, why)
  }
  assert.is(await statusFromPop(), '200')
})

test('with ORIGIN_PULL_CA_FILE, who comes through Cloudflare needs our certificate; checks from inside and past it go on', async () => {
  const run = await harden({ ORIGIN_PULL_CA_FILE: 'origin/ours-ca.pem' })
  assert.is(run.code, 0, said(run))
  await until(async () => (await statusFromPop()) === '403', 'a request without a certificate to be refused', 10)
  assert.is(await statusFromPop(['--cert', '/tmp/ours.pem']), '200')
  assert.is(await statusFromPop(['--cert', '/tmp/others.pem']), '400')
  assert.is(await statusFromPop(['-H', `CF-Connecting-IP: ${RUNNER_ADDRESS}`]), '403')
  assert.is(await fromPop('/healthz', ['-o', '/dev/null', '-w', '%{http_code}'], 'crm.'), '403')
  const smoke = await runScript('smoke-test')
  assert.is(smoke.code, 0, said(smoke))
  await serverRead(sh`docker exec kgc-nginx-proxy-1 curl -fsS -m 3 http://127.0.0.1:8081/healthz`)
  assert.match(
    await serverRead(
      sh`curl -s -m 10 ${`http://172.20.7.12:9115/probe?module=site&target=https://${DOMAIN}/api/health`}`,
    ),
    /^probe_success 1$/m,
  )
  const off = await harden()
  assert.is(off.code, 0, said(off))
  await until(async () => (await statusFromPop()) === '200', 'requests without a certificate to be answered', 10)
})

test.run()
