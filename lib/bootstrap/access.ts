import { setTimeout as sleep } from 'node:timers/promises'
import { messageOf, Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { type ServerFile, serverText } from '../put-file.ts'
import { putFiles } from '../server-files.ts'
import { quote, script, sh } from '../shell.ts'
import { checkFile, type Step } from './step.ts'

const SUDOERS = '/etc/sudoers.d/kgc-admin'
const sudoers = (user: string): ServerFile => ({
  path: SUDOERS,
  content: `${user} ALL=(ALL) NOPASSWD: ALL\n`,
  mode: '440',
})

/**
 * A user who logs in with the keys of the one who sets the server up. Nobody has a password.
 * @param from whose keys are copied when the user has none yet
 * @param group a group to be in, besides the own one
 */
export function user(title: string, name: string, from: string, group?: string): Step {
  const files = group === 'sudo' ? [sudoers(name)] : []
  const member = group
    ? `id -nG ${name} | tr ' ' '\\n' | grep -qx ${group} || echo 'it is not in the group ${group}'`
    : ''
  // With another group than sudo's: only the admin may do everything.
  const mayAll =
    group === 'sudo'
      ? ''
      : `grep -qs '^${name} ' ${SUDOERS} || ! sudo -l -U ${name} 2> /dev/null | grep -q 'may run' || echo 'it may use sudo, and must not: sudo -l -U ${name}'`
  return {
    title,
    check: `
home=$(getent passwd ${name} | cut -d: -f6)
[ -n "$home" ] || { echo "there is no user ${name}"; exit; }
${member}
${mayAll}
[ -s "$home/.ssh/authorized_keys" ] || echo 'nobody may log in as ${name}'
[ "$(stat -c '%a %U' "$home/.ssh" "$home/.ssh/authorized_keys" 2> /dev/null | tr '\\n' ' ')" = '700 ${name} 600 ${name} ' ] || echo 'others may change the keys of ${name}'
${files.map(checkFile).join('\n')}`,
    async apply(host) {
      await host.write(
        script(`
set -e
${group === 'sudo' ? '' : `if [ ! -e ${SUDOERS} ] && id -nG ${name} 2> /dev/null | grep -qw sudo; then gpasswd -d ${name} sudo > /dev/null; fi`}
getent passwd ${name} > /dev/null || useradd --create-home --shell /bin/bash ${name}
${group ? `usermod -aG ${group} ${name}` : ''}
home=$(getent passwd ${name} | cut -d: -f6)
keys=$(getent passwd ${from} | cut -d: -f6)/.ssh/authorized_keys
install -d -m 700 -o ${name} -g ${name} "$home/.ssh"
[ -s "$home/.ssh/authorized_keys" ] || {
  install -m 600 "$keys" "$home/.ssh/authorized_keys.next"
  mv "$home/.ssh/authorized_keys.next" "$home/.ssh/authorized_keys"
}
chown ${name}: "$home/.ssh/authorized_keys"
chmod 600 "$home/.ssh/authorized_keys"`),
      )
      await putFiles(host, files)
    },
  }
}

const KGC_SSHD = '/usr/local/sbin/kgc-sshd'
const programs: ServerFile[] = [
  { path: KGC_SSHD, content: serverText('kgc-sshd'), mode: '755' },
  { path: '/etc/systemd/system/kgc-sshd.service', content: serverText('kgc-sshd.service'), mode: '644' },
]

/** The settings of sshd. With another admin than root, root's own login is off. */
export const sshdSettings = (admin: string, deploy: string) =>
  `${serverText('sshd.conf')}
AllowUsers ${[...new Set([admin, deploy])].join(' ')}
PermitRootLogin ${admin === 'root' ? 'prohibit-password' : 'no'}
`

/** The same as `sshd -T` prints what counts: another file may be read before ours. */
export const effectiveSettings = (settings: string): string[] =>
  settings
    .split('\n')
    .filter((line) => /^\w/.test(line))
    .flatMap((line) => {
      const [name = '', ...values] = line.replace('prohibit-password', 'without-password').split(' ')
      return (name === 'AllowUsers' ? values : [values.join(' ')]).map((value) => `${name.toLowerCase()} ${value}`)
    })

/**
 * @param connectAs opens a new connection as one of the two users
 * @param seconds until settings that nobody confirmed go back
 */
export function sshd(
  users: { admin: string; deploy: string },
  connectAs: (name: string) => Promise<Host>,
  seconds: number,
): Step {
  const content = sshdSettings(users.admin, users.deploy)
  const settings: ServerFile = { path: '/etc/ssh/sshd_config.d/00-kgc.conf', content, mode: '644' }
  const effective = effectiveSettings(content)
  const allowed = effective.filter((line) => line.startsWith('allowusers '))
  return {
    title: 'Settings of sshd',
    check: `
${[...programs, settings].map(checkFile).join('\n')}
[ ! -d /etc/kgc/sshd-before ] || echo 'new ones are being tried'
systemctl is-enabled -q kgc-sshd || echo 'kgc-sshd does not start at boot'
counts=$(sshd -T 2> /dev/null)
for wanted in ${effective.map(quote).join(' ')}; do
  echo "$counts" | grep -qxF "$wanted" || echo "what counts is not: $wanted"
done
[ "$(echo "$counts" | grep -c '^allowusers ')" -le ${allowed.length} ] || echo 'others may log in, too: sshd -T | grep ^allowusers'`,
    async apply(host, dryRun) {
      await putFiles(host, programs)
      await host.write(script('install -d -m 700 /etc/kgc && systemctl daemon-reload && systemctl enable -q kgc-sshd'))
      await host.write(sh`${KGC_SSHD} try ${seconds}`, { input: content })
      try {
        // The connection that is open proves nothing: it would go on after a lock-out.
        for (const name of dryRun ? [] : Object.values(users)) await comesThrough(() => connectAs(name))
        await host.write(sh`${KGC_SSHD} confirm`)
      } catch (error) {
        const undone = await host.write(sh`${KGC_SSHD} revert`).then(
          () => 'The old settings were put back.',
          () => `The server puts the old settings back by itself within ${seconds} s.`,
        )
        throw new Stop(
          `With the new settings of sshd a second connection did not come through: ${messageOf(error)}\n${undone}`,
          [
            'Look for what else the server tells sshd: `sshd -T` and the files in /etc/ssh/sshd_config.d. Then run this again.',
          ],
        )
      }
    },
  }
}

/** sshd starts anew when it is reloaded, and refuses connections meanwhile: a moment, or seconds on a busy server. */
async function comesThrough(open: () => Promise<Host>): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      return await (await open()).close()
    } catch (error) {
      if (!/ECONNREFUSED|ECONNRESET/.test(messageOf(error)) || tries === 10) throw error
      await sleep(500)
    }
  }
}
