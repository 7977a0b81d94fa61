import { ENV_FLAG, runbook } from '../lib/cli.ts'
import { loadConfig, siteUrl, sshTarget } from '../lib/config.ts'
import { EXIT } from '../lib/errors.ts'
import { redactor } from '../lib/redact.ts'
import { parseVersion } from '../lib/release/release.ts'
import { databaseChecks, httpChecks } from '../lib/smoke/checks.ts'
import { describeCheck, runChecks } from '../lib/smoke/smoke.ts'
import { connect } from '../lib/ssh.ts'

await runbook(
  {
    name: 'smoke-test',
    summary: 'Checks what users need: login, dashboard, API, databases, every vendor application, certificate.',
    flags: {
      ...ENV_FLAG,
      version: { type: 'string', value: 'vN', help: 'the release that must answer (default: any)' },
      'http-only': { type: 'boolean', help: 'only what can be asked from outside; needs no SSH' },
      json: { type: 'boolean', help: 'the results as JSON on stdout' },
    },
    examples: ['', '--http-only', '--version v123 --json'],
  },
  async ({ flags }, log) => {
    const front = loadConfig(flags.env, ['front'])
    const version = flags.version === undefined ? undefined : parseVersion(flags.version)
    const server = flags['http-only'] ? undefined : loadConfig(flags.env, ['server']).server
    log.hide(redactor(front.secrets))
    const host = server && (await log.step(`Connect to ${server.SSH_HOST}`, () => connect(sshTarget(server))))
    try {
      const checks = [...httpChecks(front.front, version), ...(host ? databaseChecks(host) : [])]
      const results = await log.step(`${checks.length} checks of ${siteUrl(front.front)}`, () => runChecks(checks))
      const failed = results.filter(({ ok }) => !ok).length
      if (flags.json)
        log.result(JSON.stringify({ ok: failed === 0, site: siteUrl(front.front), checks: results }, null, 2))
      else for (const result of results) log.result(describeCheck(result))
      log.say(
        `${results.length - failed} of ${results.length} checks passed${host ? '' : '; the databases were not asked (--http-only)'}.`,
      )
      return failed === 0 ? EXIT.done : EXIT.failed
    } finally {
      await host?.close()
    }
  },
)
