import { loadConfig, sshTarget } from '../config.ts'
import { EXIT, type ExitCode } from '../errors.ts'
import { type Log, seconds } from '../log.ts'
import { redactor } from '../redact.ts'
import { connect } from '../ssh.ts'
import { table } from '../table.ts'
import { releases } from './release.ts'
import { imagesOnServer, isOnServer } from './retention.ts'
import { describeServing, survey } from './survey.ts'

const HEADER = ['version', 'state', 'commit', 'who', 'when', 'took', 'on the server']

/** Prints every release that was ever tried, the last one first, and what serves. It needs no more than the server's key. */
export async function showReleases(log: Log, env: string | undefined, asJson: boolean): Promise<ExitCode> {
  const config = loadConfig(env, ['server'])
  log.hide(redactor(config.secrets))
  const server = await log.step('Connect', () => connect(sshTarget(config.server)))
  try {
    const found = await survey(server)
    const onServer = await imagesOnServer(server, found.records)
    const rows = releases(found.records).map((release) => ({
      ...release,
      current: release.version === found.active?.version,
      onServer: isOnServer(onServer, release.images),
    }))
    if (asJson) log.result(JSON.stringify(rows, null, 2))
    else log.result(table([HEADER, ...rows.map(describe)]))
    log.say(describeServing(found))
    return EXIT.done
  } finally {
    await server.close()
  }
}

type Row = ReturnType<typeof releases>[number] & { current: boolean; onServer: boolean }

const describe = (row: Row): string[] => [
  row.version,
  row.current ? `${row.state}, current` : row.state,
  row.commit.slice(0, 7),
  row.actor,
  row.at.slice(0, 16).replace('T', ' '),
  row.seconds === undefined ? '' : seconds(row.seconds),
  row.onServer ? 'yes' : 'no',
]
