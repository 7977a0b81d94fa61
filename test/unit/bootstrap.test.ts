import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parse } from 'dotenv'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { effectiveSettings, sshdSettings } from '../../lib/bootstrap/access.ts'
import { daemonJson, isDecided, planDocker } from '../../lib/bootstrap/docker.ts'
import { assertFit, type Facts, limitsFor, parseFacts } from '../../lib/bootstrap/facts.ts'
import { environment, envLine } from '../../lib/bootstrap/secrets.ts'
import { applyStep, parseStates, type Step, surveyCommand, surveySteps } from '../../lib/bootstrap/step.ts'
import { validate } from '../../lib/config.ts'
import { Stop } from '../../lib/errors.ts'
import type { Host } from '../../lib/host.ts'
import { ROOT } from '../../lib/layout.ts'
import { localHost } from '../../lib/local.ts'
import { type Command, script } from '../../lib/shell.ts'

const test = suite('setting a server up')

/** What `apt-cache policy` says on each system that is supported. */
const CANDIDATES: Record<string, [Record<string, string>, string, string[]]> = {
  'Debian 12': [{ 'docker.io': '20.10.24+dfsg1-1+deb12u1+b2', 'docker-compose': '1.29.2-3' }, 'docker', ['docker-ce']],
  'Debian 13': [
    { 'docker.io': '26.1.5+dfsg1-9+b4', 'docker-cli': '26.1.5+dfsg1-9+b4', 'docker-compose': '2.26.1-4' },
    'distribution',
    ['docker.io', 'docker-cli', 'docker-compose'],
  ],
  'Ubuntu 22.04 as it came out': [{ 'docker.io': '20.10.12-0ubuntu4', 'docker-compose': '1.29.2-1' }, 'docker', []],
  'Ubuntu 22.04 with its updates': [
    {
      'docker.io': '28.2.2-0ubuntu1~22.04.1',
      'docker-compose': '1.29.2-1',
      'docker-compose-v2': '2.37.1+ds1-0ubuntu2',
    },
    'distribution',
    ['docker.io', 'docker-compose-v2'],
  ],
  'Ubuntu 24.04 as it came out': [
    { 'docker.io': '24.0.7-0ubuntu4', 'docker-compose': '1.29.2-6', 'docker-compose-v2': '2.24.6+ds1-0ubuntu2' },
    'docker',
    ['docker-ce'],
  ],
  'Ubuntu 24.04 with its updates': [
    {
      'docker.io': '28.2.2-0ubuntu1~24.04.1',
      'docker-compose': '1.29.2-6',
      'docker-compose-v2': '2.37.1+ds1-0ubuntu2',
    },
    'distribution',
    ['docker.io', 'docker-compose-v2'],
  ],
  'a system without the second half': [{ 'docker.io': '26.1.5', 'docker-compose': '1.29.2-6' }, 'docker', []],
  'a system without Docker': [{}, 'docker', ['docker-ce', 'docker-compose-plugin']],
}
for (const [system, [candidates, from, some]] of Object.entries(CANDIDATES)) {
  test(`takes Docker for ${system} from ${from === 'docker' ? 'its own repository' : 'the distribution'}`, () => {
    const plan = planDocker({ engine: '', compose: '' }, candidates)
    assert.is(plan.from, from)
    for (const name of some) assert.ok(plan.packages.includes(name), `${plan.packages}`)
    if (from === 'distribution') assert.equal(plan.packages, some)
  })
}

test('leaves a Docker that is new enough, and refuses to put one beside an older', () => {
  assert.equal(planDocker({ engine: '28.3.3', compose: 'v2.38.1' }, {}).packages, [])
  assert.throws(
    () => planDocker({ engine: '20.10.24', compose: '' }, {}),
    /20\.10\.24 is installed; the stack needs 25/,
  )
})

test('brings the Compose that an engine lacks from where the engine is from', () => {
  const own = { engine: '28.3.3', compose: 'v2.5.0', own: true }
  assert.ok(isDecided(own) && !isDecided({ engine: '28.3.3', compose: '' }))
  const { from, packages, why } = planDocker(own, {})
  assert.equal([from, why], ['docker', '28.3.3 is installed without Compose 2.21 or later'])
  assert.ok(packages.includes('docker-compose-plugin'))
  const debian = { 'docker.io': '26.1.5', 'docker-cli': '26.1.5', 'docker-compose': '2.26.1-4' }
  assert.is(planDocker({ engine: '26.1.5', compose: '' }, debian).from, 'distribution')
  const old = { 'docker.io': '26.1.5', 'docker-compose': '1.29.2-3' }
  assert.throws(
    () => planDocker({ engine: '26.1.5', compose: '' }, old),
    /the distribution has none. Nothing was touched/,
  )
})

test("keeps what somebody set in Docker's settings for another reason", () => {
  const fresh = daemonJson('')
  assert.is(JSON.parse(fresh)['live-restore'], true)
  assert.is(daemonJson(fresh), fresh)
  const merged = JSON.parse(daemonJson('{"mtu": 1450, "live-restore": false}'))
  assert.is(merged.mtu, 1450)
  assert.is(merged['live-restore'], true)
  assert.equal(JSON.parse(daemonJson('', 'https://mirror.example'))['registry-mirrors'], ['https://mirror.example'])
})

for (const wrong of [
  '{"iptables": false}',
  '{"ip6tables": false}',
  '{"hosts": ["unix:///run/docker.sock", "tcp://0.0.0.0:2375"]}',
  '{"firewall-backend": "nftables"}',
  '{"allow-direct-routing": true}',
  '{"mtu": 1450',
]) {
  test(`refuses Docker's settings ${wrong}`, () => assert.throws(() => daemonJson(wrong), /Nothing was touched/))
}

test('lets root in by key only, and not at all when somebody else is the admin', () => {
  assert.match(sshdSettings('root', 'deploy'), /^AllowUsers root deploy\nPermitRootLogin prohibit-password$/m)
  assert.match(sshdSettings('ops', 'deploy'), /^AllowUsers ops deploy\nPermitRootLogin no$/m)
})

test('knows how sshd prints its settings', () => {
  const printed = effectiveSettings(sshdSettings('root', 'deploy'))
  for (const line of [
    'maxstartups 10:30:60',
    'allowusers root',
    'allowusers deploy',
    'permitrootlogin without-password',
  ])
    assert.ok(printed.includes(line), line)
  assert.not.match(printed.join('\n'), /#|^\s/m)
})

const GOOD = `kernel=Linux
system=debian 13
codename=trixie
cores=8
memory=32900000
free=480000000
source=203.0.113.7
via=eth0
login=root`
const access = validate({ ADMIN_ADDRESSES: '203.0.113.7,2001:db8:5::/64' }, ['access']).config.access
const refusal = (changes: string[]) => {
  const names = changes.map((line) => line.split('=')[0])
  const lines = GOOD.split('\n').filter((line) => !names.includes(line.split('=')[0]))
  try {
    assertFit(parseFacts([...lines, ...changes].join('\n')), access, 'the server')
    return 'none'
  } catch (error) {
    assert.instance(error, Stop)
    return (error as Stop).message
  }
}

test('takes a server as it should be', () => assert.is(refusal([]), 'none'))
for (const [change, says] of [
  ['kernel=FreeBSD', /this is FreeBSD, not Linux/],
  ['system=fedora 42', /this is 'fedora 42'; supported are debian 12/],
  ['system=ubuntu 20.04', /supported are/],
  ['memory=3900000', /3\.7 GB of memory; the stack needs 7 GB/],
  ['free=9000000', /8 GB free; the stack needs 15 GB/],
  ['source=203.0.113.8', /connected from 203\.0\.113\.8, which is not in ADMIN_ADDRESSES/],
  ['obstacle=ufw is active', /ufw is active/],
] as const) {
  test(`refuses ${change}`, () => {
    const message = refusal([change])
    assert.match(message, says)
    assert.match(message, /Nothing was touched/)
  })
}

test('names everything that is in the way at once', () => {
  const message = refusal(['system=arch rolling', 'memory=900000', 'free=1000000', 'source=192.0.2.1'])
  assert.is(message.split('\n').length, 6, message)
})

test('does not measure a server that is set up already', () => {
  assert.is(refusal(['free=9000000', 'known=yes']), 'none')
})

test('gives the stack limits that a smaller server can give', () => {
  const size = (cores: number, memoryGb: number) => Object.keys(limitsFor({ cores, memoryGb } as Facts))
  assert.equal(size(8, 31.2), [])
  assert.equal(size(2, 31.2), ['POSTGRES_CPUS'])
  assert.equal(size(8, 15.6), ['POSTGRES_MEMORY', 'POSTGRES_SHARED_BUFFERS', 'POSTGRES_EFFECTIVE_CACHE_SIZE'])
})

const step = (title: string, check: string, apply: Step['apply'] = async () => {}): Step => ({ title, check, apply })

test('reads the answer of every check, whatever the others do', async () => {
  const states = await surveySteps(localHost(), [
    step('Quiet', 'true'),
    step('Loud', 'echo one; echo two'),
    step('Ends early', 'echo before; exit 3; echo after'),
    step('Broken', 'no-such-command'),
    step('Elsewhere', 'echo cannot: not in a container'),
    step('Reads', 'cat; echo fine'),
  ])
  assert.equal(
    states.map(({ drift }) => drift.length),
    [0, 2, 1, 1, 0, 1],
  )
  assert.equal(states[4]?.cannot, ['not in a container'])
})

test('takes no answer for drift, never for agreement', () => {
  assert.equal(parseStates('', [step('A', 'true')])[0]?.drift, ['the check did not run'])
})

test('writes values that Compose and dotenv read alike', () => {
  for (const value of ['plain-1', 'with $dollar and # and "quotes" and \\ and spaces', ' edges '])
    assert.is(parse(envLine('NAME', value)).NAME, value)
  assert.is(envLine('NAME', 'a$b'), "NAME='a$b'\n")
  for (const value of ["it's", 'two\nlines']) assert.throws(() => envLine('NAME', value), /NAME has a single quote or/)
})

test('keeps every value of an env file that is there, and adds what is missing', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'kgc-env-'))
  const before = "# by hand\nDOMAIN=old.example\nJWT_SECRET=kept\nGRAFANA_SECRET_KEY=\nOTHER='a b'"
  writeFileSync(join(folder, '.env'), before)
  const one = environment({ DOMAIN: 'new.example', SMOKE_EMAIL: 'a@b.example' })
  const here = ({ shell }: Command) =>
    script(
      shell
        .replaceAll(ROOT, folder)
        .replace('id -g deploy', 'id -g')
        .replace(/^chown .*$/m, ''),
    )
  const local = localHost()
  const host: Host = { ...local, write: (command, options) => local.write(here(command), options) }
  await one.apply(host, false)
  const text = readFileSync(join(folder, '.env'), 'utf8')
  const values = parse(text)
  assert.match(text, /^# by hand\nDOMAIN=old\.example\nJWT_SECRET=kept\nOTHER='a b'\n/)
  assert.is(values.SMOKE_EMAIL, 'a@b.example')
  assert.match(values.GRAFANA_SECRET_KEY ?? '', /^[0-9a-f]{48}$/)
  assert.is(statSync(join(folder, '.env')).mode & 0o777, 0o600)
  await one.apply(host, false)
  assert.is(readFileSync(join(folder, '.env'), 'utf8'), text)
  rmSync(folder, { recursive: true })
})

test('leaves a mark while a step is being done, which its check reads', async () => {
  const written: string[] = []
  const host = { ...localHost(), write: async (command: { shell: string }) => `${written.push(command.shell)}` }
  const one = step('A step', 'true', async (to) => void (await to.write(script('work'))))
  await applyStep(host, one, false)
  assert.match(written[0] ?? '', /touch (\S+a-step)$/)
  assert.is(written[1], 'work')
  assert.match(written[2] ?? '', /^rm -f \S+a-step$/)
  assert.match(surveyCommand([one]).shell, /a-step \] \|\| echo 'a run was cut off in the middle of it'/)
})

test.run()
