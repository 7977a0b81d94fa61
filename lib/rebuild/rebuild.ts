import type { Actor } from '../actor.ts'
import { catalogToRestore } from '../backup/catalog.ts'
import { openStore } from '../backup/object-store.ts'
import { assertFit, readFacts } from '../bootstrap/facts.ts'
import type { Config } from '../config.ts'
import { confirmName } from '../confirm.ts'
import { EXIT, messageOf, Stop } from '../errors.ts'
import type { Log } from '../log.ts'
import { localFree, withDownloads } from '../restore/fetch.ts'
import { recipientsOf } from '../restore/identity.ts'
import { pickRun } from '../restore/plan.ts'
import { notify } from '../slack.ts'
import { type Begun, begin, end, surveyBlank } from './blank.ts'
import { restoreData } from './data.ts'
import { assertRebuildable, describeRebuild, partsOf } from './plan.ts'
import { openSecrets, type ServerSecrets, servedRelease } from './secrets.ts'
import { connectBlank, makeServer, runScript, withServer } from './server.ts'

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

/**
 * Makes a blank server the one that a backup is of, from the object store and the identity alone. Killed anywhere, the same
 * command goes on: a marker on the server says which backup it is, and what of it is done.
 * @throws Stop that says what to do
 */
export async function rebuildServer(rebuild: Rebuild): Promise<void> {
  const { log, config, identities, dryRun } = rebuild
  const admin = await log.step('Connect', () => connectBlank(rebuild))
  const store = await openStore(config.objectStore)
  const tell = (text: string) => notify(log, config.notify.SLACK_WEBHOOK_URL, text)
  try {
    const begun = await log.step('Is it blank?', () => surveyBlank(admin))
    const choice = chosen(rebuild, begun)
    const manifest = pickRun(
      await log.step('Read the manifests', () => catalogToRestore(store, log, choice.run)),
      choice,
    )
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
    const fromLog = (begun?.fromLog ?? secrets.values.PITR === 'on') && !rebuild.run && !rebuild.before
    const plan = describeRebuild(admin.name, manifest, version, { done, fromLog, leftOut: secrets.leftOut }, new Date())
    if (dryRun) return log.result(`${plan}\nDry run: nothing was changed.`)
    await confirmName(plan, config.server.SSH_HOST, rebuild.confirmed)
    const title = `Rebuild of ${admin.name} from ${manifest.run}`
    await tell(`${title} by ${rebuild.actor.who} ${begun ? 'goes on' : 'began'}.`)
    try {
      const left = partsOf(manifest, fromLog).filter(({ name }) => !done.includes(name))
      await withDownloads(log, store, left, async (files) => {
        if (!begun) await log.step('Begin', () => begin(admin, manifest.run, fromLog))
        if (!done.includes('server')) await makeServer(rebuild, secrets, fromLog)
        await withServer(rebuild, (host) => restoreData(rebuild, host, { manifest, fromLog, done, files }))
      })
      await runScript(rebuild, 'deploy', [version])
      // It serves: from now on it must be backed up, whatever the smoke tests say.
      await withServer(rebuild, (host) => log.step('End', () => host.write(end)))
    } catch (error) {
      await tell(
        `❌ ${title} FAILED: ${log.clean(messageOf(error)).split('\n')[0]}\nNo backup is made before it is completed.`,
      )
      throw error
    }
    await runScript(rebuild, 'smoke-test').catch(async () => {
      await tell(`❌ ${title}: it serves ${version}, and smoke tests fail.`)
      throw smokeFailed(`${admin.name} was rebuilt from ${manifest.run} and serves ${version}`)
    })
    await tell(`✅ ${title} SUCCESS: it serves ${version}.`)
    log.result(`✅ ${admin.name} was rebuilt from ${manifest.run} and serves ${version}.`)
    log.say('Next: npx tsx scripts/backup.ts, and RUNBOOK.md, "Onto a blank server", for what is outside of it.')
  } finally {
    store.close()
    await admin.close()
  }
}

const smokeFailed = (serves: string) =>
  new Stop(
    `${serves}. Smoke tests fail; their own words are above.`,
    ['npx tsx scripts/smoke-test.ts, and RUNBOOK.md, "Is the site all right?"'],
    EXIT.needsHuman,
  )

/** @throws Stop (exit 2) when another backup was begun with */
function chosen({ run, before }: Rebuild, begun: Begun | undefined) {
  if (!begun) return { run, before }
  if (before === undefined && (run === undefined || run === begun.run)) return { run: begun.run }
  throw new Stop(
    `A rebuild from ${begun.run} is under way on this server.`,
    [
      'To go on with it: npx tsx scripts/restore.ts --to-blank',
      "For another backup, have the server installed anew in the hoster's panel first.",
    ],
    EXIT.usage,
  )
}

/** @throws Stop (exit 2) when it is not known which release served, or when the backup is of another site */
function releaseOf({ to, config }: Rebuild, { values, records }: ServerSecrets): string {
  if (values.DOMAIN !== config.front.DOMAIN)
    throw new Stop(`The backup is of ${values.DOMAIN}, and DOMAIN here is ${config.front.DOMAIN}.`, [], EXIT.usage)
  if (to) return to
  const served = servedRelease(records)
  if (served) return served.version
  throw new Stop('The backup does not say which release served.', ['Name it: --to vN'], EXIT.usage)
}
