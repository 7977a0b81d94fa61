import type { X509Certificate } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parse } from 'yaml'
import { certificateNames } from '../../../lib/certificates/certificates.ts'
import { script, sh } from '../../../lib/shell.ts'
import { authorityIs, authorityRoot, DNS_TOKENS, ordersAsked, recordsLeft, startAcme, stopAcme } from '../acme.ts'
import { local } from '../engine.ts'
import {
  clearSink,
  envWith,
  front,
  inContainer,
  onServer,
  rehearsal,
  runScript,
  said,
  serverRead,
  sinkMessages,
} from '../harness.ts'
import { startLoad } from '../load.ts'
import { ACME, DOMAIN, inState, PROJECT_DIR, SERVER } from '../names.ts'
import { until } from '../server.ts'

const test = suite('certificates')
const SOAK = process.env.SOAK === '1'
const NAMES = certificateNames(DOMAIN)
const SITE = '/opt/kgc/certs/site.pem'
const PROGRAM = '/usr/local/sbin/kgc-certificates'
const ROOTS = inState('acme/roots.pem')
const RULES = 'monitoring/prometheus/rules/certificates.yml'

/** The script with Let's Encrypt's way through port 80, or another. */
const certificates = (args: string[] = [], changes: Record<string, string> = {}) =>
  runScript('certificates', ['--env', certificatesEnv(changes), ...args])
const certificatesEnv = (changes: Record<string, string> = {}) =>
  envWith({ CERTIFICATE: 'http', ACME_SERVER: `https://${ACME.host}/dir`, ...changes })

/** What a visitor is shown for one of the names. */
const shown = (servername: string, ca?: string) =>
  new Promise<X509Certificate>((resolve, reject) => {
    const trust = ca ? { ca } : { rejectUnauthorized: false }
    const socket = connect({ host: SERVER.address, port: 443, servername, timeout: 5000, ...trust }, () => {
      resolve(socket.getPeerX509Certificate() as X509Certificate)
      socket.destroy()
    })
    socket.on('error', reject).on('timeout', () => socket.destroy(new Error('no answer')))
  })
const serial = async () => (await shown(DOMAIN)).serialNumber
const onSite = (text: string) => serverRead(script(text))
/** Makes every renewal due, as with 30 days left, which cannot be waited for. */
const makeDue = () =>
  onSite(`
conf=/etc/letsencrypt/renewal/kgc.conf
grep -q '^renew_before_expiry' $conf || sed -i '1i renew_before_expiry = 100 days' $conf`)
/** From now on none is due. */
const makeFresh = () => onSite(`sed -i '/^renew_before_expiry/d' /etc/letsencrypt/renewal/kgc.conf`)
/** As the timer does. */
const renewByUnit = () => onServer((host) => host.probe(sh`systemctl start kgc-certificates.service`, { timeout: 120 }))
const prometheus = async (query: string) => {
  const answer = await inContainer(
    'prometheus',
    sh`wget -q -T 5 -O - ${`http://127.0.0.1:9090/api/v1/query?query=${encodeURIComponent(query)}`}`,
  )
  return (JSON.parse(answer.stdout) as { data: { result: unknown[] } }).data.result
}

test.before(async () => {
  await rehearsal()
  // Set up with a certificate from files, the server has neither.
  await onServer((host) =>
    host.read(
      sh`apt-get update -q && apt-get install -q -y --no-install-recommends certbot python3-certbot-dns-cloudflare`,
      {
        timeout: 300,
      },
    ),
  )
  await startAcme()
  writeFileSync(ROOTS, readFileSync(inState('ca.pem'), 'utf8') + (await authorityRoot()))
  await onSite(`rm -rf ${SITE} /etc/letsencrypt /etc/kgc/certificates`)
})

test.after(async () => {
  await runScript('certificates')
  await stopAcme()
})

test('a dry run of the first one changes nothing', async () => {
  const before = await onSite('ls -lR /etc/kgc /opt/kgc/certs /etc/systemd/system')
  const run = await certificates(['--dry-run'])
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /nginx has no certificate to start with/)
  assert.match(run.stdout, /kgc-certificates renew/)
  assert.is(await onSite('ls -lR /etc/kgc /opt/kgc/certs /etc/systemd/system'), before)
})

test('a server that nothing was deployed to gets its first one, and the deploy that follows finds it', async () => {
  await onSite('docker rm -f kgc-nginx-proxy-1')
  const before = await onSite('iptables -t nat -S PREROUTING')
  const run = await certificates()
  assert.is(run.code, 0, said(run))
  assert.is(await onSite('iptables -t nat -S PREROUTING'), before)
  const deploy = await runScript('deploy', ['v2', '--env', certificatesEnv({ FRONT_CA_FILE: ROOTS })])
  assert.is(deploy.code, 0, said(deploy))
  await shown(DOMAIN, await authorityRoot())
  await onSite(`rm -rf ${SITE} /etc/letsencrypt /etc/kgc/certificates`)
})

test('with the authority down, a new server gets a placeholder, on which nginx starts', async () => {
  await authorityIs('down')
  const run = await certificates().finally(() => authorityIs('normal'))
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /The authority was not reached/)
  assert.match(run.stderr, /only the placeholder is there/)
  await serverRead(sh`docker restart kgc-nginx-proxy-1`)
  await until(
    () =>
      shown(DOMAIN).then(
        () => true,
        () => false,
      ),
    'nginx',
  )
  assert.match((await shown(DOMAIN)).subject, /placeholder/)
  const status = await certificates(['--status'])
  assert.is(status.code, 1, said(status))
})

test('a wrong token for Cloudflare: nothing comes, what serves goes on, the token is not shown', async () => {
  const before = await serial()
  // It may read the zone, not write.
  const token = DNS_TOKENS.read
  const run = await certificates([], { CERTIFICATE: 'dns', CLOUDFLARE_DNS_TOKEN: token })
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /Authentication error/)
  assert.match(run.stderr, /Next: CLOUDFLARE_DNS_TOKEN: make a token with Zone:DNS:Edit/)
  assert.not(said(run).includes(token))
  await onSite(`sed -i 's/${token}/${DNS_TOKENS.unknown}/' /etc/kgc/certificates/cloudflare.ini`)
  const unknown = await onServer((host) => host.probe(sh`${PROGRAM} renew`, { timeout: 120 }))
  assert.is(unknown.code, 1)
  assert.match(unknown.stderr, /9109 Invalid access token/)
  assert.is(await serial(), before)
  assert.is(await onSite('stat -c "%a %U" /etc/kgc/certificates/cloudflare.ini'), '600 root')
  assert.equal(await recordsLeft(), [])
})

test('the placeholder already counts as a certificate that expires', async () => {
  const [rule] = parse(readFileSync(`${PROJECT_DIR}/${RULES}`, 'utf8')).groups[0].rules
  await until(async () => (await prometheus(rule.expr)).length > 0, 'the measured expiry', 45)
})

test('the first one comes through port 80, for every name, and visitors can check it', async () => {
  const run = await certificates()
  assert.is(run.code, 0, said(run))
  const root = await authorityRoot()
  for (const name of NAMES) assert.ok((await shown(name, root)).checkHost(name), name)
  assert.match(run.stdout, /^valid .* (89|90) days left$/m)
})

test('nobody but root can read the keys, nor the settings', async () => {
  const files = `${SITE} /etc/letsencrypt/archive/kgc/privkey1.pem /etc/kgc/certificates/settings /etc/kgc/slack-webhook`
  assert.equal((await onSite(`stat -c '%a %U' ${files}`)).split('\n'), Array(4).fill('600 root'))
  assert.is(await onSite('ls /etc/kgc/certificates'), 'settings')
  const reads = await onServer((host) => host.probe(sh`cat ${SITE}`), 'deploy')
  assert.is.not(reads.code, 0)
})

test('again: nothing is asked for, nothing changes', async () => {
  const facts = () =>
    onSite(`sha256sum ${SITE}; ls -l --time-style=full-iso ${SITE} /etc/kgc /etc/systemd/system/kgc-cert*`)
  const [before, orders] = [await facts(), await ordersAsked()]
  const run = await certificates()
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /the server is set up as configured/)
  assert.is(await facts(), before)
  assert.is(await ordersAsked(), orders)
})

test('proves a name on 443, too, where Cloudflare redirects to it', async () => {
  const folder = await onSite(`docker volume inspect -f '{{.Mountpoint}}' kgc_acme`)
  await onSite(
    `mkdir -p ${folder}/.well-known/acme-challenge && echo proof > ${folder}/.well-known/acme-challenge/test`,
  )
  for (const name of NAMES) {
    const url = `https://${name}/.well-known/acme-challenge/test`
    const answer = await local.read(
      sh`curl -fsS -m 5 --cacert ${ROOTS} --resolve ${`${name}:443:${SERVER.address}`} ${url}`,
    )
    assert.is(answer, 'proof', name)
  }
  await onSite(`rm -r ${folder}/.well-known`)
})

test('renewed by the timer, over and over, no request is lost', async () => {
  const timer = sh`systemctl show -P ActiveState -P UnitFileState -P Triggers kgc-certificates.timer`
  assert.equal((await serverRead(timer)).split('\n').sort(), ['active', 'enabled', 'kgc-certificates.service'])
  assert.is((await onServer((host) => host.probe(sh`systemctl is-enabled certbot.timer`))).stdout.trim(), 'disabled')
  const seen = new Set([await serial()])
  const rounds = SOAK ? 20 : 2
  const load = startLoad({ ...front(), FRONT_CA_FILE: ROOTS }, { rate: 50, websockets: 0 })
  try {
    for (let round = 0; round < rounds; round++) {
      await makeDue()
      const { code, stderr } = await renewByUnit()
      assert.is(code, 0, stderr)
      seen.add(await serial())
    }
  } finally {
    const { sent, lost, seconds, worstLagMs } = await load.stop()
    const figures = `${rounds} renewals, ${sent} requests in ${seconds} s, ${lost.length} lost, one left ${worstLagMs} ms late`
    console.log(`  ${figures}`)
    assert.is(lost.length, 0, `${figures}: ${JSON.stringify(lost.slice(0, 5))}`)
    assert.ok(sent > 100, figures)
  }
  assert.is(seen.size, rounds + 1)
})

test('a renewal that fails leaves what serves, and Slack is told why', async () => {
  const before = await serial()
  await makeDue()
  await clearSink()
  await authorityIs('down')
  const { code } = await renewByUnit().finally(() => authorityIs('normal'))
  assert.is.not(code, 0)
  await until(async () => (await sinkMessages()).length > 0, 'the message', 15)
  const [message] = await sinkMessages()
  assert.match(message?.body.text ?? '', /kgc-certificates failed on kgc-erp/)
  assert.match(message?.body.text ?? '', /Connection refused/)
  assert.is(await serial(), before)
})

test('while the authority limits, the script says to wait, and what serves', async () => {
  const before = await serial()
  await makeDue()
  await authorityIs('limited')
  const run = await certificates().finally(() => authorityIs('normal'))
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /too many certificates/)
  assert.match(run.stderr, /Next: The authority limits how often one may ask/)
  assert.match(run.stderr, /valid .* days left/)
  assert.is(await serial(), before)
})

test('with the right token the certificate comes without port 80, and no record is left at Cloudflare', async () => {
  const before = await serial()
  await makeDue()
  const run = await certificates([], { CERTIFICATE: 'dns', CLOUDFLARE_DNS_TOKEN: DNS_TOKENS.edit })
  assert.is(run.code, 0, said(run))
  assert.is.not(await serial(), before)
  assert.equal(await recordsLeft(), [])
})

test('when nginx does not take the new one, the old one is back; the next run makes good', async () => {
  const before = await serial()
  await makeDue()
  await inContainer('nginx-proxy', sh`sh -c ${'echo nonsense > /etc/nginx/conf.d/zz.conf'}`)
  const refused = await certificates().finally(() => inContainer('nginx-proxy', sh`rm /etc/nginx/conf.d/zz.conf`))
  assert.is(refused.code, 1, said(refused))
  assert.match(refused.stderr, /nginx did not take the new certificate; the one before was put back/)
  assert.is(await serial(), before)
  const orders = await ordersAsked()
  await makeFresh()
  const run = await certificates()
  assert.is(run.code, 0, said(run))
  assert.is.not(await serial(), before)
  assert.is(await ordersAsked(), orders)
  assert.is(await onSite('ls /etc/kgc/certificates'), 'settings', "another source's token is gone")
})

test('waits for a deploy that holds the lock', async () => {
  const before = await serial()
  await makeDue()
  const holding = serverRead(
    script(`rm -f /tmp/go-on
timeout 60 flock /opt/kgc/state/deploy.lock sh -c 'until [ -e /tmp/go-on ]; do sleep 0.1; done'`),
    'deploy',
  )
  const renewal = renewByUnit()
  const live = sh`openssl x509 -noout -serial -in /etc/letsencrypt/live/kgc/fullchain.pem`
  await until(async () => !(await serverRead(live)).endsWith(before), 'the new certificate')
  await sleep(500)
  assert.is(await serial(), before)
  await serverRead(sh`touch /tmp/go-on`, 'deploy')
  await holding
  const { code, stderr } = await renewal
  assert.is(code, 0, stderr)
  assert.is.not(await serial(), before)
})

test('killed at any moment, nginx can start, and the next run makes good', async () => {
  for (let round = 0; round < (SOAK ? 20 : 1); round++) {
    await makeDue()
    // A renewal takes about 3.5 s.
    const seconds = (SOAK ? Math.random() * 4 : 2.5).toFixed(2)
    await onServer((host) => host.probe(sh`timeout -s KILL ${seconds} ${PROGRAM} renew`))
    await onServer((host) => host.probe(script('pkill -KILL -x certbot; true')))
    const test = await inContainer('nginx-proxy', sh`nginx -q -c /etc/nginx/kgc/nginx.conf -t`)
    assert.is(test.code, 0, `after ${seconds} s: ${test.stderr}`)
    const { code, stderr } = await onServer((host) => host.probe(sh`${PROGRAM} renew`, { timeout: 120 }))
    assert.is(code, 0, `after ${seconds} s: ${stderr}`)
  }
  assert.is((await certificates(['--status'])).code, 0)
})

test('killed between the rename and the reload, the next run makes nginx serve what the file has', async () => {
  await makeFresh()
  const wanted = await serial()
  await onSite(`
cd /etc/letsencrypt && umask 077
old=$(ls archive/kgc/fullchain*.pem | tr -dc '0-9\\n' | sort -n | head -n 1)
cat archive/kgc/fullchain$old.pem archive/kgc/privkey$old.pem > ${SITE}
docker exec kgc-nginx-proxy-1 nginx -c /etc/nginx/kgc/nginx.conf -s reload
sleep 1
cat live/kgc/fullchain.pem live/kgc/privkey.pem > ${SITE}`)
  assert.is.not(await serial(), wanted)
  const orders = await ordersAsked()
  const { code, stderr } = await renewByUnit()
  assert.is(code, 0, stderr)
  assert.is(await serial(), wanted)
  assert.is(await ordersAsked(), orders)
})

test('tells what is wrong: a readable key, another certificate than nginx serves, a missing name, an early end', async () => {
  /** Lifetimes in days, and those that are left. */
  const pairs = { long: [90, 21], late: [90, 19], short: [45, 14], shortLate: [45, 9], years: [5000, 21] }
  const cases: [string, RegExp, RegExp | undefined][] = [
    [`chmod 644 ${SITE}`, /others can read the key/, undefined],
    [
      `sed -i "s/^NAMES='/&other.example /" /etc/kgc/certificates/settings`,
      /the certificate is not for other\.example/,
      undefined,
    ],
    ...Object.keys(pairs).map((name): [string, RegExp, RegExp | undefined] => [
      `cat /tmp/${name}.pem > ${SITE}`,
      /nginx serves another certificate than the file has/,
      /ate/.test(name) ? /it expires on .* should have been renewed/ : undefined,
    ]),
  ]
  const names = NAMES.map((name) => `DNS:${name}`).join(',')
  await onSite(`
umask 077
at() { date -u -d "$1 days" +%Y%m%d%H%M%SZ; }
pair() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test -addext subjectAltName=${names} \\
    -not_before $(at -$(($2 - $3))) -not_after $(at $3) -keyout /tmp/$1.pem -out /tmp/$1.pem.crt 2> /dev/null
  cat /tmp/$1.pem.crt >> /tmp/$1.pem
}
${Object.entries(pairs)
  .map(([name, days]) => `pair ${name} ${days.join(' ')}`)
  .join('\n')}
cp -p ${SITE} /tmp/kept.pem; cp -p /etc/kgc/certificates/settings /tmp/kept.settings`)
  for (const [change, words, more] of cases) {
    await onSite(change)
    const { code, stderr } = await onServer((host) => host.probe(sh`${PROGRAM} check`))
    await onSite(`cp -p /tmp/kept.pem ${SITE}; cp -p /tmp/kept.settings /etc/kgc/certificates/settings`)
    assert.is(code, 1)
    assert.match(stderr, words)
    if (more) assert.match(stderr, more)
    else assert.not.match(stderr, /should have been renewed/)
  }
  await onSite('rm /tmp/kept.settings /tmp/*.pem /tmp/*.pem.crt')
  assert.is((await certificates(['--status'])).code, 0)
})

test("a certificate given as files, such as Cloudflare's own for the origin, replaces it without an authority", async () => {
  const orders = await ordersAsked()
  const run = await runScript('certificates')
  assert.is(run.code, 0, said(run))
  const ca = readFileSync(inState('ca.pem'), 'utf8')
  for (const name of NAMES) await shown(name, ca)
  assert.is(await onSite(`stat -c '%a %U' ${SITE}`), '600 root')
  assert.is(await ordersAsked(), orders)
})

test('files that are given while a renewal from elsewhere is at work come last, and stay', async () => {
  const before = await onSite(`sha256sum < ${SITE}`)
  // A renewal that began with other settings waits, until files were given.
  const output = await onSite(`
cp -p ${SITE} /tmp/given.pem; cp -p /etc/kgc/certificates/settings /tmp/given.settings
flock /run/kgc-certificates.lock sleep 3 &
sed -i "s/^SOURCE=.*/SOURCE='http'/" /etc/kgc/certificates/settings
sleep 0.5; ${PROGRAM} renew > /tmp/renewal 2>&1 & renewal=$!
sleep 1; cp -p /tmp/given.settings /etc/kgc/certificates/settings
${PROGRAM} install < /tmp/given.pem & install=$!
sleep 0.5; kill -0 $install && echo waits
wait $install && wait $renewal && echo done
rm /tmp/given.pem /tmp/given.settings /tmp/renewal`)
  assert.is(output, 'waits\ndone')
  assert.is(await onSite(`sha256sum < ${SITE}`), before)
})

test('files that cannot serve are refused before anything is touched', async () => {
  const before = await onSite(`sha256sum ${SITE}`)
  const run = await certificates([], { CERTIFICATE: 'files', CERTIFICATE_KEY_FILE: inState('ca.key') })
  assert.is(run.code, 2, said(run))
  assert.match(run.stderr, /the key is not that of the certificate/)
  const user = await certificates([], { SSH_ADMIN_USER: 'deploy' })
  assert.is(user.code, 1, said(user))
  assert.match(user.stderr, /This needs root, and the login on .* is deploy, whom sudo does not let through/)
  assert.is(await onSite(`sha256sum ${SITE}`), before)
})

test.run()
