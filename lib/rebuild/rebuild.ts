import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { Actor } from '../actor.ts'
import { connectFirst } from '../admin.ts'
import { readCatalog } from '../backup/catalog.ts'
import type { Manifest } from '../backup/manifest.ts'
import { openStore } from '../backup/object-store.ts'
import { assertFit, readFacts } from '../bootstrap/facts.ts'
import { compose, startMissing } from '../compose.ts'
import { type Config, sshTarget } from '../config.ts'
import { confirmName } from '../confirm.ts'
import { EXIT, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { withLock } from '../lock.ts'
import type { Log } from '../log.ts'
import { login } from '../release/registry.ts'
import { parseVersion } from '../release/release.ts'
import { localFree, withDownloads } from '../restore/fetch.ts'
import { removeFileLeftovers } from '../restore/files.ts'
import { openEncrypted, recipientsOf } from '../restore/identity.ts'
import { findBeside, stampOf } from '../restore/names.ts'
import { pickRun } from '../restore/plan.ts'
import { psql, removeLeftovers, surveyDatabases, withWorkshop } from '../restore/server.ts'
import { dropDatabase } from '../restore/sql.ts'
import { sh } from '../shell.ts'
import { notify } from '../slack.ts'
import { connect } from '../ssh.ts'
import { type Begun, begin, end, giveMarker, markDone, surveyBlank } from './blank.ts'
import { type On, restoreDatabase, restoreFiles, restoreGrafana, restoreQueue, restoreRoles } from './data.ts'
import { assertRebuildable, describeRebuild, partsOf } from './plan.ts'
import { openSecrets, putFirst, putRest, type ServerSecrets, servedRelease } from './secrets.ts'

export type Rebuild = {
  log: Log
  config: Config<'front' | 'server' | 'notify' | 'registry' | 'access' | 'objectStore'>
  /** The --env flag, for the scripts that are run. */
  env: string | undefined
  identities: string[]
  actor: Actor
  dryRun: boolean
  run: string | undefined
  before: Date | undefined
  /** The release to deploy, when it is not the one that served. */
  to: string | undefined
  confirmed: string | undefined
}

/** The first start of PostgreSQL makes the databases; the images come over the network. */
const START_SECONDS = 900

/**
 * Makes a blank server the one that a backup is of, from the object store and the identity alone. Killed anywhere, the same
 * command goes on: a marker on the server says which backup it is, and what of it is done.
 * @throws Stop that says what to do
 */
export async function rebuildServer(rebuild: Rebuild): Promise<void> {
  const { log, config, identities, dryRun } = rebuild
  const store = await openStore(config.objectStore)
  const admin = await log.step('Connect', () => connectFirst(adminTarget(rebuild)))
  try {
    const begun = await log.step('Is it blank?', () => surveyBlank(admin))
    const manifest = pickRun(await log.step('Read the manifests', () => readCatalog(store)), chosen(rebuild, begun))
    const facts = await readFacts(admin)
    assertFit(facts, config.access, admin.name)
    const part = assertRebuildable(manifest, {
      recipients: await recipientsOf(identities),
      localFree: await localFree(),
      // What is restored already is not free any more.
      serverFree: begun ? undefined : facts.freeGb * 1024 ** 3,
    })
    const secrets = await withDownloads(log, store, [{ ...part, name: 'secrets' }], ({ secrets: file = '' }) =>
      openSecrets(file, part, identities),
    )
    const version = releaseOf(rebuild, secrets)
    const done = begun?.done ?? []
    const plan = describeRebuild(admin.name, manifest, version, { done, leftOut: secrets.leftOut }, new Date())
    if (dryRun) return log.result(`${plan}\nDry run: nothing was changed.`)
    await confirmName(plan, config.server.SSH_HOST, rebuild.confirmed)
    await notify(
      log,
      config.notify.SLACK_WEBHOOK_URL,
      `Rebuild of ${admin.name} from ${manifest.run} by ${rebuild.actor.who} began.`,
    )
    const left = partsOf(manifest).filter(({ name }) => !done.includes(name))
    await withDownloads(log, store, left, async (files) => {
      if (!begun) await log.step('Begin', () => begin(admin, manifest.run))
      if (!done.includes('server')) await makeServer(rebuild, secrets)
      await withServer(rebuild, (host) => restoreData(rebuild, host, manifest, done, files))
    })
    await runScript(rebuild, 'deploy', [version])
    await runScript(rebuild, 'smoke-test')
    await withServer(rebuild, (host) => log.step('End', () => host.write(end)))
    const title = `✅ ${admin.name} was rebuilt from ${manifest.run} and serves ${version}.`
    await notify(log, config.notify.SLACK_WEBHOOK_URL, title)
    log.result(
      `${title}\nNext: npx tsx scripts/backup.ts, and RUNBOOK.md, "Onto a blank server", for what is outside of it.`,
    )
  } finally {
    store.close()
    await admin.close()
  }
}

const adminTarget = ({ config }: Rebuild) => sshTarget({ ...config.server, SSH_USER: config.access.SSH_ADMIN_USER })

/** @throws Stop (exit 2) when another backup was begun with */
function chosen({ run, before }: Rebuild, begun: Begun | undefined) {
  if (!begun) return { run, before }
  if (before === undefined && (run === undefined || run === begun.run)) return { run: begun.run }
  throw new Stop(
    `A rebuild from ${begun.run} is under way on this server.`,
    [
      `To go on with it: npx tsx scripts/restore.ts --to-blank --run ${begun.run}`,
      "For another backup, have the server installed anew in the hoster's panel first.",
    ],
    EXIT.usage,
  )
}

/** @throws Stop (exit 2) when it is not known which release served, or when the backup is of another site */
function releaseOf({ to, config }: Rebuild, { values, records }: ServerSecrets): string {
  if (values.DOMAIN !== config.front.DOMAIN)
    throw new Stop(`The backup is of ${values.DOMAIN}, and DOMAIN here is ${config.front.DOMAIN}.`, [], EXIT.usage)
  if (to) return parseVersion(to)
  const served = servedRelease(records)
  if (served) return served.version
  throw new Stop('The backup does not say which release served.', ['Name it: --to vN'], EXIT.usage)
}

/** Secrets first, since bootstrap-server.ts keeps what it finds and makes up what it does not. */
async function makeServer(rebuild: Rebuild, secrets: ServerSecrets): Promise<void> {
  const { log } = rebuild
  const asAdmin = async (title: string, work: (host: Host) => Promise<unknown>) => {
    const host = await connectFirst(adminTarget(rebuild))
    await log.step(title, () => work(host)).finally(() => host.close())
  }
  await asAdmin('Variables and certificates', (host) => putFirst(host, secrets))
  await runScript(rebuild, 'bootstrap-server', ['--yes'])
  await asAdmin('Secrets', async (host) => {
    await putRest(host, secrets)
    await host.write(giveMarker)
    await host.write(markDone('server'))
  })
}

/** Everything that has state, while none of the applications runs. What was done already is left alone. */
async function restoreData(
  { log, config, identities, actor }: Rebuild,
  server: Host,
  manifest: Manifest,
  done: string[],
  files: Record<string, string>,
): Promise<void> {
  await withLock(server, log, { ...actor, action: 'rebuild' }, { dryRun: false, wait: 0 }, async (host) => {
    const once = async (name: string, work: () => Promise<unknown>, titled = true) => {
      if (done.includes(name)) return
      await (titled ? log.step(`Restore ${name}`, work) : work())
      await host.write(markDone(name))
    }
    await log.step('Start PostgreSQL and the backup-service', async () => {
      await host.write(login(config.registry), { input: config.registry.REGISTRY_PASSWORD, timeout: 40 })
      await host.write(startMissing(['postgres', 'backup-service'], START_SECONDS), { timeout: START_SECONDS + 60 })
      // Their volumes, as Compose names and labels them.
      await host.write(compose(sh`create --no-recreate redis-queue grafana`), { timeout: START_SECONDS })
    })
    const found = await log.step('Remove what a dead run left', async () => {
      const { databases } = await surveyDatabases(host)
      const names = databases.map(({ name }) => name)
      const empty = findBeside(names).filter(({ kind }) => kind === 'old')
      await host.write(removeLeftovers(names), { timeout: 300 })
      await host.write(psql(empty.map(({ name }) => dropDatabase(name)).join('\n')))
      await host.write(removeFileLeftovers, { timeout: 300 })
      return surveyDatabases(host)
    })
    const on: On = { host, log, stamp: stampOf(new Date()) }
    const open = (name: string) => openEncrypted(files[name] ?? '', identities)
    await withWorkshop(host, async () => {
      if (manifest.globals) await once('roles', async () => restoreRoles(on, await open('roles')))
      for (const one of manifest.databases)
        await once(one.name, () => restoreDatabase(on, found, one, () => open(one.name)), false)
    })
    const { files: volumes, redis, grafana } = manifest
    if (volumes) await once('files', () => restoreFiles(on, volumes), false)
    if (redis) await once('job queue', async () => restoreQueue(on, await open('job queue')))
    if (grafana) await once('Grafana', async () => restoreGrafana(on, await open('Grafana')))
  })
}

async function withServer<T>({ log, config }: Rebuild, work: (host: Host) => Promise<T>): Promise<T> {
  const host = await log.step('Connect again', () => connect(sshTarget(config.server)))
  return work(host).finally(() => host.close())
}

/** Another runbook, as an operator would run it: in a process of its own, with its output shown. */
async function runScript({ env }: Rebuild, name: string, args: string[] = []): Promise<void> {
  const script = fileURLToPath(new URL(`../../scripts/${name}.ts`, import.meta.url))
  const code = await new Promise<number | null>((resolve, reject) => {
    const child = spawn(process.execPath, [...process.execArgv, script, ...args, ...(env ? ['--env', env] : [])], {
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    child.on('error', reject)
    child.on('close', resolve)
  })
  if (code !== 0)
    throw new Stop(
      `${name}.ts ended with exit code ${code}; its own words are above. What was done before it stays done.`,
      ['Put that right, then give the same command again: it goes on from there.'],
    )
}
