import { existsSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Stop } from '../../lib/errors.ts'
import type { Host } from '../../lib/host.ts'
import { type Command, script, sh } from '../../lib/shell.ts'
import { connect, fingerprint } from '../../lib/ssh.ts'
import { docker, local } from './engine.ts'
import { ipv6 } from './ipv6.ts'
import {
  IMAGES,
  inState,
  MACHINE,
  MACHINE_PACKAGES,
  NETWORKS,
  PACKAGES,
  PREFIX,
  PROJECT_DIR,
  PUSH_ADDRESS,
  REGISTRY,
  S3,
  SERVER,
  SINK,
} from './names.ts'
import { isUbuntu, SYSTEM, type System } from './system.ts'

const DISK = inState('disk')
const DISK_IMAGE = inState('disk.img')
/** Sparse: it takes what is written. A disk of its own can be filled without harm to the machine. */
const DISK_SIZE = '24G'
const BOOT_SECONDS = 60

export const running = async (container: string) =>
  (await local.probe(sh`docker container inspect -f ${'{{.State.Running}}'} ${container}`)).stdout.trim() === 'true'

/** Says whose rehearsal a container belongs to. */
export const OWNER = `--label=kgc.rehearsal.checkout=${PROJECT_DIR}`

/**
 * One machine has one rehearsal at a time, as its addresses are fixed. What another checkout left behind, stopped, is
 * replaced.
 * @throws Stop when the rehearsal of another checkout runs
 */
export async function claimNames(): Promise<void> {
  const format = '{{.State.Running}} {{index .Config.Labels "kgc.rehearsal.checkout"}}'
  for (const container of [SERVER, REGISTRY, SINK, PACKAGES, S3, MACHINE, MACHINE_PACKAGES].map(
    ({ container }) => container,
  )) {
    const { code, stdout } = await local.probe(sh`docker container inspect -f ${format} ${container}`)
    const [isRunning = '', owner = ''] = stdout.trim().split(' ')
    if (code !== 0 || owner === PROJECT_DIR) continue
    if (isRunning === 'true') {
      throw new Stop(`The rehearsal of another checkout runs on this machine: ${owner}.`, [
        `cd ${owner} && npm run rehearse -- down`,
      ])
    }
    await docker(sh`rm -f -v ${container}`)
  }
}

/** What an earlier checkout made without IPv6 is made anew; the server that was on it is then set up again, on its old disk. */
export async function makeNetworks(): Promise<void> {
  for (const { name, subnet } of Object.values(NETWORKS)) {
    const { stdout } = await local.probe(sh`docker network inspect -f ${'{{.EnableIPv6}}'} ${name}`)
    if (stdout.trim() === 'true') continue
    if (stdout.trim() === 'false') {
      await local.probe(sh`docker rm -f ${[SERVER, REGISTRY, SINK].map(({ container }) => container)}`)
      await docker(sh`network rm ${name}`)
    }
    await docker(sh`network create --internal --ipv6 --subnet ${subnet} --subnet ${ipv6(subnet)} ${name}`)
  }
}

/** The registry, with its storage in a volume so that images are pushed once. */
export async function startRegistry(): Promise<void> {
  if (await running(REGISTRY.container)) return
  await local.probe(sh`docker rm -f ${REGISTRY.container}`)
  const password = registryPassword()
  await local.read(
    sh`docker run --rm -i --entrypoint htpasswd ${`${IMAGES}/registry`} -niB ${REGISTRY.user} > ${inState('registry/htpasswd')}`,
    { input: `${password}\n` },
  )
  await docker(
    sh`create --name ${REGISTRY.container} ${OWNER} --publish ${PUSH_ADDRESS}:5001 --volume ${`${PREFIX}-registry:/var/lib/registry`} --volume ${`${inState('registry')}:/config:ro`} ${`${IMAGES}/registry`}`,
  )
  await docker(sh`network connect --ip ${REGISTRY.address} ${NETWORKS.main.name} ${REGISTRY.container}`)
  await docker(sh`start ${REGISTRY.container}`)
  await until(
    async () => (await local.probe(sh`curl -fsS -o /dev/null http://${PUSH_ADDRESS}/v2/`)).code === 0,
    'the registry',
  )
}

export const registryPassword = () => readFileSync(inState('registry-password'), 'utf8').trim()

/** The sink for messages, and the mirror of packages. */
export async function startHelpers(): Promise<void> {
  for (const [{ container, address }, image] of [
    [SINK, 'sink'],
    [PACKAGES, isUbuntu(SYSTEM) ? `packages-ubuntu:${SYSTEM}` : 'packages'],
  ] as const) {
    const built = await docker(sh`image inspect -f ${'{{.Id}}'} ${`${IMAGES}/${image}`}`)
    const runs = await local.probe(sh`docker container inspect -f ${'{{.State.Running}} {{.Image}}'} ${container}`)
    if (runs.stdout.trim() === `true ${built}`) continue
    await local.probe(sh`docker rm -f ${container}`)
    await docker(
      sh`run -d --name ${container} ${OWNER} --network ${NETWORKS.main.name} --ip ${address} ${`${IMAGES}/${image}`}`,
    )
  }
}

/**
 * Boots the server: a container with systemd, its own sshd, and a disk of its own. A new one is blank.
 * @returns false when it was running already
 */
export async function startServer(): Promise<boolean> {
  if (await running(SERVER.container)) return false
  await mountDisk()
  if ((await local.probe(sh`docker start ${SERVER.container}`)).code !== 0) {
    const hosts = sh`--add-host ${`${REGISTRY.host.split(':')[0]}:${REGISTRY.address}`}`
    const volumes = sh`-v ${`${DISK}/docker:/var/lib/docker`} -v ${`${DISK}/containerd:/var/lib/containerd`} -v ${`${DISK}/kgc:/opt/kgc`}`
    await docker(
      sh`create --name ${SERVER.container} ${OWNER} --hostname kgc-erp --network ${NETWORKS.main.name} --ip ${SERVER.address} --ip6 ${ipv6(SERVER.address)} ${hosts} ${volumes} ${await bootFlags(SYSTEM)}`,
    )
    await docker(
      sh`network connect --ip ${SERVER.edgeAddress} --ip6 ${ipv6(SERVER.edgeAddress)} ${NETWORKS.edge.name} ${SERVER.container}`,
    )
    await docker(sh`start ${SERVER.container}`)
  }
  await asHoster(SYSTEM)
  return true
}

const BOOTED = script(
  '{ systemctl is-active ssh || systemctl is-active ssh.socket; } && test -e /etc/ssh/ssh_host_ed25519_key && { ! systemctl is-enabled -q docker 2> /dev/null || systemctl is-active docker; }',
)

/** What the hoster does to a new server: the customer's key for root, and where packages come from. */
export async function asHoster(suite: System | 'bookworm', container = SERVER.container): Promise<void> {
  await until(async () => (await local.probe(inServer(BOOTED, container))).code === 0, 'the server')
  if (!existsSync(inState('id_ed25519'))) {
    await local.read(sh`ssh-keygen -q -t ed25519 -N ${''} -C kgc-rehearsal -f ${inState('id_ed25519')}`)
  }
  const key = readFileSync(inState('id_ed25519.pub'), 'utf8')
  const source = `deb [trusted=yes] http://${PACKAGES.address}/${suite} ./`
  await local.read(
    inServer(
      script(`
umask 077; mkdir -p /root/.ssh; echo '${key.trim()}' > /root/.ssh/authorized_keys
rm -f /etc/apt/sources.list.d/*.sources; install -m 644 /dev/null /etc/apt/sources.list; echo '${source}' > /etc/apt/sources.list`),
      container,
    ),
  )
}

/** What systemd needs to run in a container; it differs between the two kinds of control groups. */
export async function bootFlags(suite: System | 'bookworm'): Promise<Command> {
  const common = sh`--cap-add ALL --cap-drop SYS_RESOURCE --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined --tmpfs /run --tmpfs /tmp`
  const image = `${IMAGES}/blank${isUbuntu(suite) ? '-ubuntu' : ''}:${suite}`
  const version = await docker(sh`info -f ${'{{.CgroupVersion}}'}`)
  return version === '1'
    ? sh`${common} -v /sys/fs/cgroup:/sys/fs/cgroup:rw --cgroupns=host ${image} SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1`
    : sh`${common} --cgroupns=private ${image}`
}

/** A command on the server's console, as the hoster's panel offers one. Only the rehearsal itself uses it. */
export const inServer = (command: Command, container = SERVER.container) =>
  sh`docker exec ${container} sh -c ${command.shell}`

export async function hostKey(container = SERVER.container): Promise<string> {
  const [, key = ''] = (await local.read(inServer(sh`cat /etc/ssh/ssh_host_ed25519_key.pub`, container))).split(' ')
  return fingerprint(Buffer.from(key, 'base64'))
}

export async function connectAs(user: string): Promise<Host> {
  return connect({ host: SERVER.address, port: 22, user, keyFile: inState('id_ed25519'), hostKey: await hostKey() })
}

/** A server of another system gives way. */
export async function removeOther(): Promise<void> {
  const { stdout } = await local.probe(sh`docker container inspect -f ${'{{.Config.Image}}'} ${SERVER.container}`)
  if (stdout.trim() !== '' && !stdout.trim().endsWith(SYSTEM)) await removeServer()
}

/** Removes the server and its disk: all that a fire at the hoster's takes. Backups and the operator's files stay. */
export async function loseServer(): Promise<void> {
  await local.probe(sh`docker rm -f -v ${SERVER.container}`, { timeout: 120 })
  await until(
    async () => !(await isMounted()) || (await local.probe(sh`umount ${DISK}`)).code === 0,
    'the disk to be released',
  )
  await local.read(sh`rm -rf ${DISK} ${DISK_IMAGE} ${inState('ready')}`)
}

/** Removes the server, its disk and its backups. */
export async function removeServer(): Promise<void> {
  await loseServer()
  // The next server has other secrets, among them the one of the files' backups.
  await local.probe(sh`docker rm -f ${S3.container}`)
  await local.probe(sh`docker volume rm ${S3.container}`)
  await local.read(sh`rm -rf ${inState('.env')}`)
}

const isMounted = async () => (await local.probe(sh`mountpoint -q ${DISK}`)).code === 0

async function mountDisk(): Promise<void> {
  if (process.getuid?.() !== 0) {
    await local.read(sh`mkdir -p ${['docker', 'containerd', 'kgc'].map((name) => `${DISK}/${name}`)}`)
    return
  }
  if (await isMounted()) return
  await local.read(
    script(`
mkdir -p ${DISK}
[ -f ${DISK_IMAGE} ] || { truncate -s ${DISK_SIZE} ${DISK_IMAGE} && mkfs.ext4 -q -m 0 ${DISK_IMAGE}; }
mount -o loop ${DISK_IMAGE} ${DISK} && mkdir -p ${DISK}/docker ${DISK}/containerd ${DISK}/kgc
`),
  )
}

export async function until(ready: () => Promise<boolean>, what: string, limitSeconds = BOOT_SECONDS): Promise<void> {
  const end = Date.now() + limitSeconds * 1000
  while (!(await ready())) {
    if (Date.now() > end) throw new Stop(`Waited ${limitSeconds} s for ${what}.`)
    await sleep(200)
  }
}
