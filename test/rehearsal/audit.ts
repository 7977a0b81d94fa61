import { chain, script, sh } from '../../lib/shell.ts'
import { docker, local } from './engine.ts'
import { IMAGES, NETWORKS, RUNNER_ADDRESS, SERVER } from './names.ts'
import { inServer } from './server.ts'

const AUDITOR = `${SERVER.container}-audit`
const ADDRESS = RUNNER_ADDRESS.replace(/\d+$/, '60')

/** A machine from which the server is audited: it has the tools. */
export async function startAuditor(): Promise<void> {
  await local.probe(sh`docker rm -f -v ${AUDITOR}`)
  await docker(
    sh`run -d --init --name ${AUDITOR} --network ${NETWORKS.main.name} --ip ${ADDRESS} ${`${IMAGES}/visitor`}`,
  )
}

export const stopAuditor = () => local.probe(sh`docker rm -f -v ${AUDITOR}`)

/**
 * What ssh-audit finds to say against the server's sshd, and its exit code: 0 nothing, 2 warnings, 3 failures. It asks over
 * the server's own loopback, as the firewall lets in nobody but admins.
 */
export async function sshAudit(): Promise<{ code: number | null; findings: string[] }> {
  const { code, stdout } = await local.probe(
    sh`docker run --rm --network ${`container:${SERVER.container}`} --entrypoint ssh-audit ${`${IMAGES}/visitor`} --skip-rate-test --no-colors --level warn 127.0.0.1`,
    { timeout: 60 },
  )
  return { code, findings: stdout.split('\n').filter((line) => /\[(warn|fail)\]/.test(line)) }
}

/** Lynis' hardening index of a machine, and its warnings. Lynis is carried there for as long as it takes. */
export async function lynis(container = SERVER.container): Promise<{ index: number; warnings: string[] }> {
  const carry = sh`docker exec ${AUDITOR} tar -C / -c usr/share/lynis usr/sbin/lynis etc/lynis | docker exec -i ${container} sh -c ${'rm -rf /var/tmp/lynis; mkdir -p /var/tmp/lynis/here/plugins; tar -x -C /var/tmp/lynis'}`
  const run = script(`
cd /var/tmp/lynis/here && cp -r ../usr/share/lynis/include ../usr/share/lynis/db ../usr/sbin/lynis ../etc/lynis/default.prf .
./lynis audit system --quick --no-colors --report-file ./report --logfile ./log > out 2>&1
grep -E '^(hardening_index|warning)' report
rm -rf /var/tmp/lynis`)
  const report = await local.read(chain(carry, inServer(run, container)), { timeout: 400 })
  return {
    index: Number(/^hardening_index=(\d+)$/m.exec(report)?.[1]),
    warnings: [...report.matchAll(/^warning\[\]=([A-Z]+-\d+)/gm)].map(([, id]) => id ?? ''),
  }
}
