import { existsSync, rmSync } from 'node:fs'
import { runbook } from '../../lib/cli.ts'
import { EXIT, Stop } from '../../lib/errors.ts'
import { localHost } from '../../lib/local.ts'
import type { Log } from '../../lib/log.ts'
import { type Survey, survey } from '../../lib/release/survey.ts'
import { script, sh } from '../../lib/shell.ts'
import { buildImages, pushImages } from './build.ts'
import { makeCertificates } from './certificates.ts'
import { ensureEngine, local, stopOwnEngine } from './engine.ts'
import {
  ACME,
  DOMAIN,
  inState,
  MACHINE,
  MACHINE_PACKAGES,
  makeStateDir,
  NETWORKS,
  PACKAGES,
  PREFIX,
  PROJECT_DIR,
  REGISTRY,
  S3,
  SERVER,
  SINK,
  STATE_DIR,
} from './names.ts'
import { makeAgeIdentity, makeS3Keys, startS3 } from './s3.ts'
import {
  claimNames,
  connectAs,
  makeNetworks,
  removeOther,
  removeServer,
  startHelpers,
  startRegistry,
  startServer,
} from './server.ts'
import { makeRegistryPassword, setUpServer, writeOperatorEnv } from './setup.ts'

/** Raises everything but the ERP itself: images, registry, and a server that is ready for its first deploy. */
export async function raise(log: Log): Promise<void> {
  const booted = await raiseBlank(log)
  if (booted || !existsSync(inState('ready'))) await setUpServer(log)
}

/**
 * Raises what is around the server, and the server as the hoster gives it.
 * @returns false when it was running already
 */
export async function raiseBlank(log: Log): Promise<boolean> {
  makeStateDir()
  await ensureEngine(log)
  await claimNames()
  await removeOther()
  await buildImages(log)
  await log.step('Certificates', makeCertificates)
  makeRegistryPassword()
  await makeS3Keys()
  await makeAgeIdentity()
  await log.step('Networks', makeNetworks)
  await log.step('Registry', startRegistry)
  await log.step('Images into the registry', pushImages)
  await log.step('Message sink and package mirror', startHelpers)
  await log.step('S3 server', startS3)
  const booted = await log.step('Server', startServer)
  await writeOperatorEnv()
  return booted
}

async function up(log: Log): Promise<void> {
  await raise(log)
  const { records } = await surveyServer()
  for (const version of ['v1', 'v2']) {
    if (records.some((run) => run.version === version && run.outcome === 'good')) continue
    await deploy(version)
  }
  const { active } = await surveyServer()
  log.result(`
The rehearsal server runs and serves ${active?.version}.

  site      https://${DOMAIN} at ${SERVER.address}, certificates by .rehearsal/ca.pem
  ssh       ssh -i .rehearsal/id_ed25519 deploy@${SERVER.address}
  messages  ${SINK.url}/messages
  s3        ${S3.endpoint}, bucket ${S3.bucket}, keys in .rehearsal/.env
  drive it  npx tsx scripts/<any>.ts --env .rehearsal/.env
  remove    npm run rehearse -- down`)
}

async function surveyServer(): Promise<Survey> {
  const host = await connectAs('deploy')
  return survey(host).finally(() => host.close())
}

/** As an operator would: the same command, in a process of its own, with its output shown. */
async function deploy(version: string): Promise<void> {
  const { code } = await localHost().probe(
    sh`cd ${PROJECT_DIR} && node --import tsx scripts/deploy.ts ${version} --env ${inState('.env')}`,
    { timeout: 1800, onLine: (line) => process.stderr.write(`  ${line}\n`) },
  )
  if (code !== 0) throw new Stop(`deploy.ts ${version} ended with exit code ${code}.`)
}

async function down(log: Log): Promise<void> {
  if ((await local.probe(sh`docker info`)).code === 0) {
    await log.step('Remove the server and its disk', removeServer)
    await log.step('Remove registry, sink, mirror, S3 server and networks', async () => {
      await local.probe(
        sh`docker rm -f -v ${[REGISTRY, SINK, PACKAGES, ACME, S3, MACHINE, MACHINE_PACKAGES].map(({ container }) => container)}`,
      )
      await local.probe(sh`docker volume rm ${[`${PREFIX}-registry`, S3.container]}`)
      for (const { name } of Object.values(NETWORKS)) await local.probe(sh`docker network rm ${name}`)
    })
    await log.step('Remove images', () => local.probe(removeImages, { timeout: 300 }))
  }
  await log.step('Stop Docker, if this started it', stopOwnEngine)
  rmSync(STATE_DIR, { recursive: true, force: true })
}

/** Two rounds: what others are built on goes after them. */
const removeImages = script(`
for round in 1 2; do
  docker images --filter label=kgc.rehearsal.hash --format '{{if eq .Tag "<none>"}}{{.ID}}{{else}}{{.Repository}}:{{.Tag}}{{end}}' | sort -u | xargs -r docker rmi -f
done`)

if (process.argv[1]?.endsWith('rehearse.ts')) {
  await runbook(
    {
      name: 'rehearse',
      command: 'npm run rehearse --',
      summary: 'Raises a production-shaped server on this machine and deploys the ERP on it; `down` removes all of it.',
      positionals: { names: ['down'], required: 0 },
      flags: {},
      examples: ['', 'down'],
    },
    async ({ positionals: [what] }, log) => {
      if (what === undefined) await up(log)
      else if (what === 'down') await down(log)
      else
        throw new Stop(
          `'${what}' is neither nothing nor 'down'.`,
          ['npm run rehearse', 'npm run rehearse -- down'],
          EXIT.usage,
        )
      return EXIT.done
    },
  )
}
