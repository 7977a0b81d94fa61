import { messageOf, Stop } from '../errors.ts'
import type { Host, Result } from '../host.ts'
import { CERTIFICATE, ROOT } from '../layout.ts'
import { differingFiles, putFiles, sha256 } from '../server-files.ts'
import { chain, script, sh } from '../shell.ts'
import { CERTIFICATES, remedies, SETTINGS, type WantedCertificate } from './certificates.ts'

const SITE = `${ROOT}/${CERTIFICATE}`
const TIMER = 'kgc-certificates.timer'
/** The server's own bounds: 15 minutes for each of two locks, 10 for certbot. */
const RENEW_SECONDS = 45 * 60
/** A renewal that is at work, the lock of a deploy, a reload and its confirmation. */
const INSTALL_SECONDS = 35 * 60

/** Shell text that names what, besides the files, is not as it should be. */
export const CERTIFICATE_CHECKS = `
[ -s ${SITE} ] || echo 'nginx has no certificate to start with'
systemctl is-enabled -q ${TIMER} 2> /dev/null && systemctl is-active -q ${TIMER} || echo 'the timer is off'
if systemctl is-enabled -q certbot.timer 2> /dev/null; then echo "certbot's own timer is on, beside ours"; fi`

/**
 * What is not yet as wanted, one line each; empty when nothing is to be done. It changes nothing. Whether the authority
 * has given a certificate is another question: `certificateStatus`.
 * @throws Stop when a program is missing
 */
export async function checkCertificates(host: Host, wanted: WantedCertificate): Promise<string[]> {
  await assertAble(host, wanted)
  const differing = await differingFiles(host, wanted.files)
  const facts = await host.read(
    script(`
for file in ${sh`${wanted.superfluous}`.shell}; do [ ! -e "$file" ] || echo "$file is not needed any more"; done
case $(systemctl show -P NeedDaemonReload ${TIMER} kgc-certificates.service) in *yes*) echo 'systemd has not read the new units' ;; esac
${CERTIFICATE_CHECKS}`),
  )
  return [
    ...differing.map(({ path }) => `${path} is missing or differs`),
    ...facts.split('\n').filter(Boolean),
    ...((await isAnother(host, wanted)) ? [`${SITE} is not the certificate of CERTIFICATE_FILE`] : []),
  ]
}

async function assertAble(host: Host, { packages }: WantedCertificate): Promise<void> {
  const query = sh`dpkg-query -W -f ${`\${Status} \${Package}\\n`} ${packages} 2> /dev/null || true`
  const known = (await host.read(query)).split('\n')
  const absent = packages.filter((name) => !known.includes(`install ok installed ${name}`))
  if (absent.length > 0)
    throw new Stop(`Not installed on ${host.name}: ${absent.join(', ')}. Nothing was changed.`, [
      `On the server: apt-get install -y --no-install-recommends ${absent.join(' ')}`,
    ])
}

const isAnother = async (host: Host, { pem }: WantedCertificate) =>
  pem !== undefined && !(await host.probe(sh`sha256sum ${SITE}`)).stdout.startsWith(sha256(pem))

/**
 * Puts everything in its place: program, settings, timer, a placeholder for nginx to start with, and a certificate
 * that is given as files. Asks no authority. Run again after a failure, it goes on where it stopped.
 * @throws Stop when nginx does not take the certificate; the one before is back then
 */
export async function applyCertificates(host: Host, wanted: WantedCertificate): Promise<void> {
  await putFiles(host, await differingFiles(host, wanted.files))
  await host.write(
    chain(
      ...(wanted.superfluous.length > 0 ? [sh`rm -f ${wanted.superfluous}`] : []),
      script(`{ ! systemctl is-enabled -q certbot.timer 2> /dev/null || systemctl disable -q --now certbot.timer; }`),
      sh`systemctl daemon-reload`,
      sh`systemctl enable -q --now ${TIMER}`,
    ),
  )
  if (!wanted.pem) await host.write(sh`${CERTIFICATES} placeholder`, { timeout: INSTALL_SECONDS })
  else if (await isAnother(host, wanted))
    await host.write(sh`${CERTIFICATES} install`, { input: wanted.pem, timeout: INSTALL_SECONDS })
}

/**
 * Asks the authority for the certificate when there is none, when it is due, or when names or authority changed; then
 * makes nginx serve it.
 * @returns what the server said
 * @throws Stop that says what is served now and what to do
 */
export async function renewCertificate(host: Host): Promise<string> {
  try {
    return await host.write(sh`${CERTIFICATES} renew 2>&1`, { timeout: RENEW_SECONDS })
  } catch (error) {
    const { stdout, stderr } = await certificateStatus(host)
    throw new Stop(`${messageOf(error)}\nWhat is there now:\n${indent(`${stdout}${stderr}`)}`, [
      ...remedies(messageOf(error)),
      'See what is served: npx tsx scripts/certificates.ts --status',
    ])
  }
}

/** What the server has; the exit code is 0 when it is served, for every name, and not about to expire. */
export const certificateStatus = (host: Host): Promise<Result> =>
  host.probe(
    script(
      `[ -x ${CERTIFICATES} ] && [ -s ${SETTINGS} ] || { echo 'The certificates of this server were never set up.' >&2; exit 1; }; ${CERTIFICATES} status`,
    ),
  )

const indent = (text: string) => text.trimEnd().replace(/^/gm, '  ')
