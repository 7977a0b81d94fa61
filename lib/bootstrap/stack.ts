import { readFileSync } from 'node:fs'
import type { WantedCertificate } from '../certificates/certificates.ts'
import { applyCertificates, CERTIFICATE_CHECKS } from '../certificates/server.ts'
import type { Cidr } from '../cidr.ts'
import type { Host } from '../host.ts'
import { BACKUP_FOLDER, LOCK, NGINX_CONF, PROXY, ROOT, STEP_LOCK } from '../layout.ts'
import { localHost } from '../local.ts'
import { putFile, type ServerFile } from '../put-file.ts'
import { checkoutCommit, localCommit, sendCommit } from '../release/checkout.ts'
import { emptyColorEnvs } from '../release/files.ts'
import { prepareActive } from '../release/switch.ts'
import { putFiles } from '../server-files.ts'
import { chain, script, sh } from '../shell.ts'
import { checkFile, filesStep, type Step } from './step.ts'

/** Folders that git does not have: path, mode, owner. */
const FOLDERS = [
  ['', 755, 'deploy'],
  ['state', 755, 'deploy'],
  ['state/nginx', 755, 'deploy'],
  ['state/metrics', 755, 'root'],
  [BACKUP_FOLDER, 755, 'root'],
  ['secrets', 700, 'deploy'],
  ['secrets/redis', 750, 'deploy'],
  ['secrets/redis-queue', 750, 'deploy'],
  ['certs', 700, 'root'],
] as const

export const folders: Step = {
  title: `Folders of ${ROOT}`,
  check: FOLDERS.map(
    ([path, mode, owner]) =>
      `[ "$(stat -c '%a %U' ${ROOT}/${path} 2> /dev/null)" = '${mode} ${owner}' ] || echo '${ROOT}/${path} is not there as ${mode} ${owner}'`,
  ).join('\n'),
  async apply(host) {
    await host.write(
      chain(
        ...FOLDERS.map(([path, mode, owner]) => sh`install -d -m ${mode} -o ${owner} -g ${owner} ${`${ROOT}/${path}`}`),
      ),
    )
  },
}

/**
 * Whose word about the visitor's address nginx believes, and whom it lets in to Grafana. The first list is only begun: from
 * then on the server keeps it current itself.
 */
export function nginxLists(admins: Cidr[], cloudflare: Cidr[]): Step {
  const ranges = `${ROOT}/state/nginx/cloudflare.conf`
  const rights = { owner: 'deploy', mode: '644' }
  const allowed: ServerFile = {
    ...{ path: `${ROOT}/state/nginx/admins.conf`, ...rights },
    content: admins.map(({ text }) => `allow ${text};\n`).join(''),
  }
  return {
    title: "nginx's lists of addresses",
    check: `
[ -s ${ranges} ] || echo '${ranges} is missing'
${checkFile(allowed)}`,
    async apply(host) {
      if ((await host.probe(sh`test -s ${ranges}`)).code !== 0)
        await putFile(host, ranges, cloudflare.map(({ text }) => `set_real_ip_from ${text};\n`).join(''), rights)
      await putFiles(host, [allowed])
      await host.write(reloadProxy, { timeout: 120 })
    },
  }
}

const reload = chain(
  ...['-t', '-s reload'].map((action) => script(`docker exec ${PROXY} nginx -q -c ${NGINX_CONF} ${action}`)),
)
/** On a new server it does not run yet. Between two commands of a deploy its files are those of neither release. */
const reloadProxy = script(`
[ "$(docker inspect -f '{{.State.Running}}' ${PROXY} 2> /dev/null)" = true ] || exit 0
cd ${ROOT}
${sh`flock -w 60 ${LOCK} flock -w 20 ${STEP_LOCK} sh -c ${reload.shell}`.shell}`)

/** @param wanted where it comes from; until the first one came, nginx starts on a placeholder that nobody believes */
export const certificate = (wanted: WantedCertificate): Step => ({
  title: 'Certificate',
  check: `
${wanted.files.map(checkFile).join('\n')}
${CERTIFICATE_CHECKS}`,
  apply: (host) => applyCertificates(host, wanted),
})

const S3_AUTHORITY = 'certs/s3-ca.pem'
/** Where the backup-service finds it, and PostgreSQL's archiving: compose/operations.yaml, compose/pitr-on.yaml. */
export const S3_AUTHORITY_VALUES = {
  S3_CA_FILE: `/data/server/${S3_AUTHORITY}`,
  PITR_CA_FILE: `${ROOT}/${S3_AUTHORITY}`,
}
/** @param file the authority of an object store that nobody else knows */
export const storeAuthority = (file: string): Step =>
  filesStep('Authority of the object store', [
    { path: `${ROOT}/${S3_AUTHORITY}`, content: readFileSync(file, 'utf8'), mode: '644' },
  ])

/** The files of this commit, once: from the first deploy on, releases say which files the server has. */
export const checkout: Step = {
  title: 'Checkout',
  check: `
runuser -u deploy -- git -C ${ROOT} rev-parse -q --verify HEAD > /dev/null 2>&1 || echo 'there is none'
[ -e ${ROOT}/state/nginx/release.conf ] || echo 'there is no release.conf'
for color in blue green; do [ -e ${ROOT}/state/$color.env ] || echo "there is no $color.env"; done`,
  async apply(host) {
    const asDeploy = runAs('deploy', host)
    const local = localHost()
    const { hash } = await localCommit(local)
    await asDeploy.write(script(`git -C ${ROOT} rev-parse --git-dir > /dev/null 2>&1 || git -C ${ROOT} init -q`))
    await asDeploy.write(chain(prepareActive, emptyColorEnvs))
    if ((await asDeploy.probe(sh`git -C ${ROOT} rev-parse -q --verify HEAD`)).code === 0) return
    await sendCommit(local, asDeploy, hash, '')
    await asDeploy.write(checkoutCommit(hash))
  },
}

/** The same host, with commands run by another user. */
const runAs = (name: string, host: Host): Host => ({
  ...host,
  read: (command, options) => host.read(sh`runuser -u ${name} -- sh -c ${command.shell}`, options),
  write: (command, options) => host.write(sh`runuser -u ${name} -- sh -c ${command.shell}`, options),
  probe: (command, options) => host.probe(sh`runuser -u ${name} -- sh -c ${command.shell}`, options),
})
