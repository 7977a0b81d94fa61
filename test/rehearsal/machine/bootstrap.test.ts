import { readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { createLog } from '../../../lib/log.ts'
import { script, sh } from '../../../lib/shell.ts'
import { local } from '../engine.ts'
import { envWith, type Run, runScript, said, startScript } from '../harness.ts'
import { dockerKey, machineKey, onMachine, removeMachine, SEEN_AS, startMachine } from '../machine.ts'
import { inState, MACHINE, PROJECT_DIR, RUNNER_ADDRESS } from '../names.ts'
import { raiseBlank } from '../rehearse.ts'
import { until } from '../server.ts'
import { trustRegistry } from '../setup.ts'

const test = suite('Debian 12 with a kernel of its own, and Docker from its own repository')

/** A checkout that believes the key of the stand-in for Docker's repository, and is the same otherwise. */
const CHECKOUT = inState('machine-checkout')
const DOCKER = 'lib/bootstrap/docker.ts'

let env = ''
const bootstrap = (args: string[] = [], checkout = CHECKOUT) =>
  startScript('bootstrap-server', ['--env', env, '--revert-after', '60', ...args], {}, checkout)
const isDone = (run: Run) => assert.is(run.code, 0, said(run))
const onConsole = (text: string) => onMachine((host) => host.read(script(text), { timeout: 120 }))

test.before(async () => {
  const log = createLog()
  await raiseBlank(log)
  await startMachine(log)
  env = envWith({
    SSH_HOST: MACHINE.address,
    SSH_HOST_KEY: await machineKey(),
    FRONT_IP: MACHINE.address,
    ADMIN_ADDRESSES: `${SEEN_AS},${RUNNER_ADDRESS}`,
    EXTRA_HTTPS_SOURCES: SEEN_AS,
    HEALTH_TIMEOUT: '120',
  })
  rmSync(CHECKOUT, { recursive: true, force: true })
  await local.read(sh`git clone -q ${PROJECT_DIR} ${CHECKOUT}`)
  symlinkSync(`${PROJECT_DIR}/node_modules`, `${CHECKOUT}/node_modules`)
  const text = readFileSync(`${CHECKOUT}/${DOCKER}`, 'utf8')
  const changed = text.replace(/(?<=const KEY = ')[0-9A-F]+/, await dockerKey())
  assert.is.not(changed, text)
  writeFileSync(`${CHECKOUT}/${DOCKER}`, changed)
})
test.after(async () => {
  await removeMachine()
  rmSync(CHECKOUT, { recursive: true, force: true })
})

test("packages that are not signed with Docker's own key are not let in", async () => {
  const run = await bootstrap(['--yes'], PROJECT_DIR).ended
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /Docker comes from its own repository: the distribution has only 20\.10/)
  assert.match(run.stderr, /gpg is not the pinned key 9DC858229FC7DD38854AE2D88D81803C0EBFCD88 but [0-9A-F]{40}/)
  assert.is(await onConsole('ls /etc/apt/keyrings; ls /etc/apt/sources.list.d; command -v dockerd || true'), '')
})

test('what a run that was killed while it made the swap file left behind is completed by the next', async () => {
  const { child, output, ended } = bootstrap(['--yes'])
  await until(async () => output.stderr.includes('✔ Clock and time zone') || child.exitCode !== null, 'Swap', 1500)
  assert.is(child.exitCode, null, output.stdout + output.stderr)
  child.kill('SIGKILL')
  await ended
  const run = await bootstrap(['--yes']).ended
  isDone(run)
  console.log(`  completed in ${run.seconds.toFixed(0)} s`)
  // Everything that a container cannot be is done here.
  assert.not.match(run.stdout, /not here|not possible here/)
  assert.match(run.stdout, /^Swap +done$/m)
})

test('swap, clock, kernel, control groups and Docker are as they should be', async () => {
  assert.match(await onConsole('swapon --noheadings --show=NAME,SIZE'), /^\/swapfile +4G$/)
  assert.is(await onConsole('systemctl is-active systemd-timesyncd'), 'active')
  assert.match(await onConsole('timedatectl show'), /^Timezone=Europe\/Budapest$[\s\S]*^NTP=yes$/m)
  assert.is(await onConsole('sysctl -n vm.overcommit_memory'), '1')
  assert.is(await onConsole('docker info -f "{{.CgroupVersion}} {{.LiveRestoreEnabled}}"'), '2 true')
  assert.match(await onConsole('dpkg-query -W docker-ce docker-compose-plugin'), /^docker-ce\s+5:26\.1\.5/)
})

test('run again, it finds nothing to do', async () => {
  const run = await bootstrap().ended
  isDone(run)
  assert.match(run.stderr, /is as it should be; nothing is to do/)
})

test('after a restart of the machine, everything is as it was, and the firewall stands', async () => {
  const rules = await onConsole('iptables-save | grep -c KGC')
  const booted = await onConsole('cat /proc/sys/kernel/random/boot_id')
  await onConsole('systemctl reboot').catch(() => {})
  // It answers for a moment while it goes down.
  const isBack = () =>
    onConsole('cat /proc/sys/kernel/random/boot_id').then(
      (now) => now !== booted,
      () => false,
    )
  await until(isBack, 'the machine', 300)
  await until(async () => (await onConsole('systemctl is-active docker || true')) === 'active', 'Docker', 60)
  const check = await bootstrap(['--check']).ended
  isDone(check)
  assert.match(await onConsole('swapon --noheadings --show=NAME'), /swapfile/)
  assert.is(await onConsole('iptables-save | grep -c KGC'), rules)
})

test('the whole ERP starts on it, in control groups of version 2, and comes back by itself after a restart', async () => {
  await onMachine(trustRegistry)
  const deploy = await runScript('deploy', ['v1', '--env', env])
  isDone(deploy)
  console.log(`  first deploy in ${deploy.seconds.toFixed(0)} s`)
  await onConsole('systemctl reboot').catch(() => {})
  const smoke = () => runScript('smoke-test', ['--env', env])
  await until(async () => (await smoke()).code === 0, 'the site', 300)
})

test.run()
