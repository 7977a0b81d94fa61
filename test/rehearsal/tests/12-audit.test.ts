import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { script, sh } from '../../../lib/shell.ts'
import { CIS } from '../cis-docker.ts'
import { onServer, rehearsal } from '../harness.ts'
import { PROJECT_DIR } from '../names.ts'

const SCORES = JSON.parse(readFileSync(`${PROJECT_DIR}/test/rehearsal/scores.json`, 'utf8')) as { cis: number }

const test = suite('the CIS Docker Benchmark, on the serving server')

/** What does not meet each check, by id. */
const found = new Map<string, string>()

test.before(async () => {
  await rehearsal()
  const checks = CIS.map(({ id, offenders }) => `echo '@@${id}'; ( ${offenders}\n) 2>&1 < /dev/null`).join('\n')
  const { stdout } = await onServer((host) => host.probe(script(`cd /\n${checks}`), { timeout: 120 }))
  for (const part of stdout.split(/^@@/m).slice(1)) {
    const [id = '', ...lines] = part.split('\n')
    found.set(id, lines.join('\n').trim())
  }
})

for (const { id, title, not } of CIS) {
  test(`${id} ${title}: ${not ? `not met, ${not}` : 'met'}`, () => {
    const offenders = found.get(id)
    assert.ok(offenders !== undefined, 'the check did not run')
    if (not) assert.is.not(offenders, '', 'it is met by now: the list says otherwise')
    else assert.is(offenders, '')
  })
}

test('the firewall is what its files say, also after Docker made networks', () =>
  onServer(async (host) => {
    const added = '-A DOCKER-USER -j RETURN'
    assert.match(await host.read(sh`iptables -S DOCKER-USER`), new RegExp(`-j DROP(\n${added})?$`))
    assert.is((await host.probe(sh`/usr/local/sbin/kgc-firewall check`)).code, 0)
    // At the top the same rule would let everybody in.
    await host.write(sh`iptables -I DOCKER-USER -j RETURN`)
    const open = await host.probe(sh`/usr/local/sbin/kgc-firewall check`)
    await host.write(sh`iptables -D DOCKER-USER 1`)
    assert.match(open.stderr, /IPv4: what is active is not what/)
  }))

test('nothing is published over IPv6', () =>
  onServer(async (host) => {
    assert.match(
      await host.read(sh`docker ps --format ${'{{.Ports}}'}`),
      /^0\.0\.0\.0:80->80\/tcp, 0\.0\.0\.0:443->443\/tcp$/m,
    )
    assert.not.match(await host.read(sh`docker ps --format ${'{{.Ports}}'}; ss -Hltn`), /::\]?:(80|443)\b/)
  }))

test('none is given up that was met before', () => {
  const met = CIS.filter(({ not }) => !not).length
  console.log(`  ${met} of ${CIS.length} checks are met`)
  assert.is(met, SCORES.cis, 'when they are more, raise it in test/rehearsal/scores.json')
})

test.run()
