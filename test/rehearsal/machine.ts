import type { Host } from '../../lib/host.ts'
import type { Log } from '../../lib/log.ts'
import { sh } from '../../lib/shell.ts'
import { connect, fingerprint } from '../../lib/ssh.ts'
import { buildImages } from './build.ts'
import { docker, local } from './engine.ts'
import { IMAGES, inState, MACHINE, MACHINE_PACKAGES, NETWORKS, REGISTRY } from './names.ts'
import { OWNER, until } from './server.ts'

/** The machine sees everybody as this address: the network card of QEMU's user mode is a router. */
export const SEEN_AS = '10.0.2.2'
/** Alone on two cores it takes one minute. */
const BOOT_SECONDS = 600

/** Boots a virtual machine as the hoster gives it: root by key, and nothing else. */
export async function startMachine(log: Log): Promise<void> {
  await buildImages(log, { machine: true })
  await removeMachine()
  await docker(
    sh`run -d --name ${MACHINE_PACKAGES.container} ${OWNER} --network ${NETWORKS.main.name} --ip ${MACHINE_PACKAGES.address} -v ${`${inState('docker')}:/tls:ro`} ${`${IMAGES}/machine-packages`}`,
  )
  const hosts = `${MACHINE_PACKAGES.address} download.docker.com\n${REGISTRY.address} ${REGISTRY.host.split(':')[0]}`
  const given = ['id_ed25519.pub', 'ca.pem'].flatMap((name) => ['-v', `${inState(name)}:/given/${name}:ro`])
  const source = `deb [trusted=yes] http://${MACHINE_PACKAGES.address}/bookworm ./`
  await docker(
    sh`run -d --name ${MACHINE.container} ${OWNER} --network ${NETWORKS.main.name} --ip ${MACHINE.address} ${given} --env ${`HOSTS=${hosts}`} --env ${`SOURCE=${source}`} ${`${IMAGES}/machine`}`,
  )
  await log.step('Virtual machine', () => until(answers, 'the virtual machine', BOOT_SECONDS))
}

export const removeMachine = () => local.probe(sh`docker rm -f -v ${MACHINE.container} ${MACHINE_PACKAGES.container}`)

/** Known before the machine first boots: whoever makes its disk makes its keys. */
export async function machineKey(): Promise<string> {
  const file = '/system/etc/ssh/ssh_host_ed25519_key.pub'
  const [, key = ''] = (await docker(sh`exec ${MACHINE.container} cat ${file}`)).split(' ')
  return fingerprint(Buffer.from(key, 'base64'))
}

export async function onMachine<T>(work: (host: Host) => Promise<T>): Promise<T> {
  const keyFile = inState('id_ed25519')
  const host = await connect({ host: MACHINE.address, port: 22, user: 'root', keyFile, hostKey: await machineKey() })
  return work(host).finally(() => host.close())
}

const answers = () =>
  onMachine((host) => host.read(sh`true`)).then(
    () => true,
    () => false,
  )

/** Prints the fingerprint of the key with which the stand-in for Docker's repository signs. */
export const dockerKey = () => docker(sh`exec ${MACHINE_PACKAGES.container} cat /docker/linux/debian/fingerprint`)
