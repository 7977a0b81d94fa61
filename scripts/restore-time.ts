import { currentActor } from '../lib/actor.ts'
import { DRY_RUN_FLAG, ENV_FLAG, runbook, WAIT_FLAG, waitSeconds } from '../lib/cli.ts'
import { loadConfig, sshTarget } from '../lib/config.ts'
import { confirmName } from '../lib/confirm.ts'
import { EXIT, Stop } from '../lib/errors.ts'
import { parseWhen } from '../lib/pitr/cluster.ts'
import { type PitrRun, restoreBesideOnly, restoreToTime, undoRestore } from '../lib/pitr/restore.ts'
import { redactor } from '../lib/redact.ts'
import { httpChecks } from '../lib/smoke/checks.ts'
import { describeCheck, runChecks } from '../lib/smoke/smoke.ts'
import { connect } from '../lib/ssh.ts'

await runbook(
  {
    name: 'restore-time',
    summary:
      'Puts all databases back to one moment, to the second. Restores beside what serves, compares, asks, then swaps; --undo swaps back.',
    flags: {
      ...ENV_FLAG,
      ...DRY_RUN_FLAG,
      ...WAIT_FLAG,
      time: { type: 'string', value: 'WHEN', help: "14:05, '2026-11-23 14:05:30' (Budapest), with a zone, or newest" },
      'beside-only': { type: 'boolean', help: 'no swap: leaves it running beside what serves, to copy from' },
      undo: { type: 'boolean', help: 'the cluster that the last restore replaced serves again' },
      confirm: { type: 'string', value: 'HOST', help: 'the server, as SSH_HOST has it: instead of being asked for it' },
    },
    examples: ['--time 14:05', '--time newest', '--time 14:05 --beside-only', '--undo'],
  },
  async ({ flags }, log) => {
    if ((flags.time === undefined) === !flags.undo || (flags.undo && flags['beside-only']))
      throw new Stop('Give --time, or --undo, and not both.', ['npx tsx scripts/restore-time.ts --help'], EXIT.usage)
    const when = flags.time === undefined ? undefined : parseWhen(flags.time)
    const config = loadConfig(flags.env, ['front', 'server'])
    log.hide(redactor(config.secrets))
    const dryRun = flags['dry-run']
    const server = await log.step('Connect', () =>
      connect(sshTarget(config.server), dryRun ? (command) => log.result(command.shell) : undefined),
    )
    const run: PitrRun = {
      ...{ log, server, dryRun, actor: currentActor(), wait: waitSeconds(flags) },
      approve: (question) => confirmName(question, config.server.SSH_HOST, flags.confirm),
    }
    try {
      if (when === undefined) await undoRestore(run)
      else if (flags['beside-only']) await restoreBesideOnly(run, when)
      else await restoreToTime(run, when)
      if (dryRun || flags['beside-only']) return EXIT.done
      const results = await log.step('Smoke tests', () => runChecks(httpChecks(config.front)))
      const failed = results.filter(({ ok }) => !ok)
      for (const result of failed) log.result(describeCheck(result))
      if (failed.length === 0) return EXIT.done
      throw new Stop(
        `The restored cluster serves, and ${failed.length} smoke tests fail.`,
        ['npx tsx scripts/smoke-test.ts, to see whether it lasts.', 'Back: npx tsx scripts/restore-time.ts --undo'],
        EXIT.needsHuman,
      )
    } finally {
      await server.close()
    }
  },
)
