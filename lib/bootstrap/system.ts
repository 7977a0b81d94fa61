import { serverText } from '../put-file.ts'
import { script } from '../shell.ts'
import { filesStep, type Step } from './step.ts'

/** What the runbooks use on the server, besides Docker. */
export const PACKAGES = [
  ...['ca-certificates', 'curl', 'git', 'iproute2', 'iptables', 'openssl', 'procps', 'tzdata'],
  ...['fail2ban', 'python3-systemd', 'unattended-upgrades', 'apparmor', 'sudo'],
]
/** Where the hoster chose chrony, it stays: the two exclude each other. */
const CLOCK = `clock=systemd-timesyncd
[ "$(dpkg-query -W -f '\${db:Status-Status}' chrony 2> /dev/null)" != installed ] || clock=`
const ZONE = 'Europe/Budapest'
const LOG = '/var/log/kgc-bootstrap.log'
/** apt's own timers begin just after a new server's first boot, and take minutes. */
const APT_SECONDS = 900

/** True in a container, which has its machine's kernel, clock and memory. */
const IN_CONTAINER = 'systemd-detect-virt -q --container'

/** @param names the packages that must be there */
export const packages = (names: string[]): Step => ({
  title: 'Packages',
  check: `
${CLOCK}
for name in ${names.join(' ')} $clock; do
  [ "$(dpkg-query -W -f '\${db:Status-Status}' $name 2> /dev/null)" = installed ] || echo "$name is not installed"
done
[ -z "$(dpkg --audit)" ] || echo 'an installation was cut off'`,
  async apply(host) {
    await host.write(
      // What it prints goes to a file: apt-get would die in the middle when nobody reads it any more. It removes nothing: what
      // excludes these packages is somebody's choice.
      script(`
{
  ${CLOCK}
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
  patiently() { for try in $(seq 60); do "$@" && return; sleep 5; done; return 1; }
  apt() { apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold "$@"; }
  patiently dpkg --configure -a && apt -f install && patiently apt update && apt install --no-remove --no-install-recommends ${names.join(' ')} $clock
} >> ${LOG} 2>&1 && exit
tail -n 20 ${LOG} >&2
exit 1`),
      { timeout: APT_SECONDS },
    )
  },
})

export const timeAndZone: Step = {
  title: 'Clock and time zone',
  check: `
[ "$(readlink -f /etc/localtime)" = /usr/share/zoneinfo/${ZONE} ] || echo 'the time zone is not ${ZONE}'
if ${IN_CONTAINER}; then
  echo "cannot: the clock is that of the machine around this container"
elif ! systemctl is-active -q chrony systemd-timesyncd; then
  echo 'nothing sets the clock'
fi`,
  async apply(host) {
    await host.write(
      script(`
ln -sfn /usr/share/zoneinfo/${ZONE} /etc/localtime.next && mv -T /etc/localtime.next /etc/localtime
echo ${ZONE} > /etc/timezone
${IN_CONTAINER} || systemctl is-active -q chrony || systemctl enable -q --now systemd-timesyncd`),
    )
  },
}

const SWAP = '/swapfile'
/** Of any kind; a machine that the hoster gave a swap partition has enough. */
export const swap: Step = {
  title: 'Swap',
  check: `
if [ -n "$(swapon --noheadings --show=NAME)" ]; then :
elif ${IN_CONTAINER}; then echo 'cannot: a container has no swap of its own'
else echo 'there is none'; fi`,
  async apply(host) {
    await host.write(
      // 4 GB: room for what is never used again, not for running out of memory slowly. A file from before may be half made.
      script(`
set -e
umask 077
# Switched on last: what is in use is whole. A run that was cut off may have come so far.
if swapon --noheadings --show=NAME | grep -qx ${SWAP}; then exit 0; fi
rm -f ${SWAP}
fallocate -l 4G ${SWAP} || dd if=/dev/zero of=${SWAP} bs=1M count=4096 status=none
mkswap -q ${SWAP}
grep -q '^${SWAP} ' /etc/fstab || echo '${SWAP} none swap sw 0 0' >> /etc/fstab
swapon ${SWAP}`),
      { timeout: 300 },
    )
  },
}

const SYSCTL = '/etc/sysctl.d/90-kgc.conf'
const EACH = `sed -n 's/^\\([a-z0-9_.]*\\) = \\(.*\\)/\\1 \\2/p' ${SYSCTL} 2> /dev/null | while read -r name wanted`
export const kernel: Step = filesStep(
  'Kernel settings',
  [{ path: SYSCTL, content: serverText('sysctl.conf'), mode: '644' }],
  script(`${EACH}; do
  if [ -w /proc/sys/$(echo $name | tr . /) ]; then sysctl -q -w "$name=$wanted"; fi
done`),
  `
${EACH}; do
  file=/proc/sys/$(echo $name | tr . /)
  # A kernel that was built without it has nothing to set.
  [ -e $file ] || continue
  [ "$(cat $file)" = "$wanted" ] || if [ -w $file ]; then echo "$name is $(cat $file), not $wanted"; else echo "cannot: $name is $(cat $file), set by the machine around this container"; fi
done`,
)

/** Network protocols and buses that no server of this kind uses, and that had holes. */
const UNUSED = ['dccp', 'sctp', 'rds', 'tipc', 'usb-storage', 'firewire-ohci']
export const modules: Step = filesStep('Kernel modules that stay out', [
  {
    path: '/etc/modprobe.d/kgc.conf',
    content: UNUSED.map((name) => `blacklist ${name}\ninstall ${name} /bin/false\n`).join(''),
    mode: '644',
  },
])

export const journal: Step = filesStep(
  'Bounds of the journal',
  [{ path: '/etc/systemd/journald.conf.d/90-kgc.conf', content: serverText('journald.conf'), mode: '644' }],
  script('systemctl restart systemd-journald'),
)

export const upgrades: Step = filesStep(
  'Security upgrades by themselves',
  [{ path: '/etc/apt/apt.conf.d/52kgc-upgrades', content: serverText('apt-upgrades.conf'), mode: '644' }],
  script('systemctl enable -q --now apt-daily.timer apt-daily-upgrade.timer'),
  `
for timer in apt-daily.timer apt-daily-upgrade.timer; do systemctl is-active -q $timer || echo "$timer is off"; done`,
)

/** @param never who is not to be banned; the firewall lets nobody else near sshd, but those of a private network */
export const bans = (never: string[], port: number): Step =>
  filesStep(
    'Bans after failed logins',
    [
      {
        // Read after every .conf: Debian's own sets nftables, whose program a small server lacks, and bans then do nothing.
        path: '/etc/fail2ban/jail.d/kgc.local',
        mode: '644',
        content: `[DEFAULT]
ignoreip = 127.0.0.1/8 ::1 ${never.join(' ')}
banaction = iptables-multiport

[sshd]
enabled = true
port = ${port}
backend = systemd
# Where passwords are off, who guesses one is only seen to leave: the normal mode does not count that.
mode = aggressive
maxretry = 5
findtime = 10m
bantime = 1h
`,
      },
    ],
    script('systemctl enable -q fail2ban && systemctl restart fail2ban'),
    `
systemctl is-active -q fail2ban || echo 'fail2ban does not run'
systemctl is-enabled -q fail2ban || echo 'fail2ban does not start at boot'`,
  )
