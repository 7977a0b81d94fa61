import { existsSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Stop } from '../../lib/errors.ts'
import type { Host } from '../../lib/host.ts'
import { type Command, script, sh } from '../../lib/shell.ts'
import { connect, fingerprint } from '../../lib/ssh.ts'
import { docker, local } from './engine.ts'
import { inState, NETWORKS, PREFIX, PROJECT_DIR, REGISTRY, SERVER, SINK } from './names.ts'

const DISK = inState('disk')
const DISK_IMAGE = inState('disk.img')
/** Sparse: it takes what is written. A disk of its own can be filled without harm to the machine. */
const DISK_SIZE = '24G'
const BOOT_SECONDS = 60

export const running = async (container: string) =>
  (await local.probe(sh`docker container inspect -f ${'{{.State.Running}}'} ${container}`)).stdout.trim() === 'true'

/** Says whose rehearsal a container belongs to. */
const OWNER = `--label=kgc.rehearsal.checkout=${PROJECT_DIR}`

/**
 * One machine has one rehearsal at a time, as its addresses are fixed. What another checkout left behind, stopped, is
 * replaced.
 * @throws Stop when the rehearsal of another checkout runs
 */
export async function claimNames(): Promise<void> {
  const format = '{{.State.Running}} {{index .Config.Labels "kgc.rehearsal.checkout"}}'
  for (const container of [SERVER.container, REGISTRY.container, SINK.container]) {
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

export async function makeNetworks(): Promise<void> {
  for (const { name, subnet } of Object.values(NETWORKS)) {
    const exists = (await local.probe(sh`docker network inspect ${name}`)).code === 0
    if (!exists) await docker(sh`network create --internal --subnet ${subnet} ${name}`)
  }
}

/** The registry, with its storage in a volume so that images are pushed once. */
export async function startRegistry(): Promise<void> {
  if (await running(REGISTRY.container)) return
  await local.probe(sh`docker rm -f ${REGISTRY.container}`)
  const password = registryPassword()
  await local.read(
    sh`docker run --rm -i --entrypoint htpasswd ${`${PREFIX}/registry`} -niB ${REGISTRY.user} > ${inState('registry/htpasswd')}`,
    { input: `${password}\n` },
  )
  await docker(
    sh`create --name ${REGISTRY.container} ${OWNER} --publish 127.0.0.1:25001:5001 --volume ${`${PREFIX}-registry:/var/lib/registry`} --volume ${`${inState('registry')}:/config:ro`} ${`${PREFIX}/registry`}`,
  )
  await docker(sh`network connect --ip ${REGISTRY.address} ${NETWORKS.main.name} ${REGISTRY.container}`)
  await docker(sh`start ${REGISTRY.container}`)
  await until(
    async () => (await local.probe(sh`curl -fsS -o /dev/null http://127.0.0.1:25001/v2/`)).code === 0,
    'the registry',
  )
}

export const registryPassword = () => readFileSync(inState('registry-password'), 'utf8').trim()

export async function startSink(): Promise<void> {
  if (await running(SINK.container)) return
  await local.probe(sh`docker rm -f ${SINK.container}`)
  await docker(
    sh`run -d --name ${SINK.container} ${OWNER} --network ${NETWORKS.main.name} --ip ${SINK.address} ${`${PREFIX}/sink`}`,
  )
}

/**
 * Boots the server: a container with systemd, its own sshd and dockerd, and a disk of its own.
 * @returns false when it was running already
 */
export async function startServer(): Promise<boolean> {
  if (await running(SERVER.container)) return false
  await mountDisk()
  if ((await local.probe(sh`docker start ${SERVER.container}`)).code !== 0) {
    const hosts = sh`--add-host ${`${REGISTRY.host.split(':')[0]}:${REGISTRY.address}`}`
    const volumes = sh`-v ${`${DISK}/docker:/var/lib/docker`} -v ${`${DISK}/kgc:/opt/kgc`}`
    await docker(
      sh`create --name ${SERVER.container} ${OWNER} --hostname kgc-erp --network ${NETWORKS.main.name} --ip ${SERVER.address} ${hosts} ${volumes} ${await bootFlags()}`,
    )
    await docker(sh`network connect --ip ${SERVER.edgeAddress} ${NETWORKS.edge.name} ${SERVER.container}`)
    await docker(sh`start ${SERVER.container}`)
  }
  await until(async () => (await local.probe(inServer(sh`systemctl is-active ssh docker`))).code === 0, 'the server')
  await authorizeRoot()
  return true
}

/** What systemd needs to run in a container; it differs between the two kinds of control groups. */
async function bootFlags(): Promise<Command> {
  const common = sh`--cap-add ALL --cap-drop SYS_RESOURCE --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined --tmpfs /run --tmpfs /tmp`
  const image = `${PREFIX}/server`
  const version = await docker(sh`info -f ${'{{.CgroupVersion}}'}`)
  return version === '1'
    ? sh`${common} -v /sys/fs/cgroup:/sys/fs/cgroup:rw --cgroupns=host ${image} SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1`
    : sh`${common} --cgroupns=private ${image}`
}

/** A command on the server's console, as the hoster's panel offers one. Only the rehearsal itself uses it. */
export const inServer = (command: Command) => sh`docker exec ${SERVER.container} sh -c ${command.shell}`

/** The hoster puts the customer's key onto a new server, and its panel shows the host key. */
async function authorizeRoot(): Promise<void> {
  if (!existsSync(inState('id_ed25519'))) {
    await local.read(sh`ssh-keygen -q -t ed25519 -N ${''} -C kgc-rehearsal -f ${inState('id_ed25519')}`)
  }
  const key = readFileSync(inState('id_ed25519.pub'), 'utf8')
  await local.read(
    inServer(script(`umask 077; mkdir -p /root/.ssh; echo '${key.trim()}' > /root/.ssh/authorized_keys`)),
  )
}

export async function hostKey(): Promise<string> {
  const [, key = ''] = (await local.read(inServer(sh`cat /etc/ssh/ssh_host_ed25519_key.pub`))).split(' ')
  return fingerprint(Buffer.from(key, 'base64'))
}

export async function connectAs(user: string): Promise<Host> {
  return connect({ host: SERVER.address, port: 22, user, keyFile: inState('id_ed25519'), hostKey: await hostKey() })
}

/** Removes the server and its disk. */
export async function removeServer(): Promise<void> {
  await local.probe(sh`docker rm -f -v ${SERVER.container}`, { timeout: 120 })
  await until(
    async () => !(await isMounted()) || (await local.probe(sh`umount ${DISK}`)).code === 0,
    'the disk to be released',
  )
  // Without the configuration the next server counts as one that is not set up yet.
  await local.read(sh`rm -rf ${DISK} ${DISK_IMAGE} ${inState('.env')}`)
}

const isMounted = async () => (await local.probe(sh`mountpoint -q ${DISK}`)).code === 0

async function mountDisk(): Promise<void> {
  if (process.getuid?.() !== 0) {
    await local.read(sh`mkdir -p ${`${DISK}/docker`} ${`${DISK}/kgc`}`)
    return
  }
  if (await isMounted()) return
  await local.read(
    script(`
mkdir -p ${DISK}
[ -f ${DISK_IMAGE} ] || { truncate -s ${DISK_SIZE} ${DISK_IMAGE} && mkfs.ext4 -q -m 0 ${DISK_IMAGE}; }
mount -o loop ${DISK_IMAGE} ${DISK} && mkdir -p ${DISK}/docker ${DISK}/kgc
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
