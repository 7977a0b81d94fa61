/**
 * The checks of the CIS Docker Benchmark 1.6.0 that apply to this server, and what holds of each. Swarm's own checks
 * (part 7), images' contents (part 4, the customer's) and files that this server does not have are left out.
 */
export type CisCheck = {
  id: string
  title: string
  /** Shell text, run as root with the stack deployed; prints what does not meet it. */
  offenders: string
  /** Why it is not met, or `not here` when only a real server can meet it. Without it, it is met. */
  not?: string
}

const rights = (paths: string, wanted: string) =>
  `for path in ${paths}; do [ ! -e $path ] || stat -c '%a %U:%G %n' $path; done | grep -vE '^(${wanted}) '`
const daemon = (format: string, wanted: string) => `docker info -f '${format}' | grep -vxE '${wanted}'`
/** A line per container that runs: the name, then what is asked of it; the lines that are not as wanted remain. */
const containers = (format: string, wanted: string) =>
  `docker ps -q | xargs docker inspect -f '{{.Name}} ${format}' | sed 's/  *$//' | grep -vE '^/[^ ]+ ?(${wanted})$'`

const NO_AUDIT = 'nobody but root and deploy, who is root through Docker, could change it, and both could stop an audit'

export const CIS: CisCheck[] = [
  {
    id: '1.1.1',
    title: 'A partition of their own for containers',
    offenders: '[ $(stat -c %d /var/lib/docker) != $(stat -c %d /opt/kgc) ] || echo shared with /opt/kgc',
    not: 'the server has one disk; what is free is looked at before every deploy, and watched',
  },
  {
    id: '1.1.2',
    title: 'Only trusted users control the daemon',
    offenders: 'getent group docker | grep -v ":deploy$"',
  },
  {
    id: '1.1.3',
    title: 'Auditing of the daemon and its files (to 1.1.18)',
    offenders: 'command -v auditctl > /dev/null || echo no auditd',
    not: NO_AUDIT,
  },
  {
    id: '1.2.2',
    title: 'Docker is the newest that its repository has (the host itself, 1.2.1, is what lynis looks at)',
    offenders: `for name in docker.io docker-ce; do apt-cache policy $name | awk '/Installed:/ { has = $2 } /Candidate:/ { newest = $2; if (has != "(none)" && has != newest) print has, newest }'; done`,
  },
  {
    id: '2.1',
    title: 'The daemon runs without root',
    offenders: 'ps -o user= -C dockerd | grep root',
    not: 'ports 80 and 443, fixed addresses and the firewall need the real one',
  },
  {
    id: '2.2',
    title: 'No traffic between containers on the default bridge',
    offenders: `docker network inspect bridge -f '{{index .Options "com.docker.network.bridge.enable_icc"}}' | grep -vx false`,
  },
  { id: '2.3', title: 'The log level is info', offenders: 'grep -E "log-level|\\"debug\\"" /etc/docker/daemon.json' },
  { id: '2.4', title: 'Docker may change iptables', offenders: 'grep iptables /etc/docker/daemon.json' },
  {
    id: '2.5',
    title: 'No insecure registries',
    offenders: daemon('{{range .RegistryConfig.InsecureRegistryCIDRs}}{{println .}}{{end}}', '127.0.0.0/8|::1/128|'),
  },
  { id: '2.6', title: 'No aufs', offenders: daemon('{{.Driver}}', 'overlay2|overlayfs') },
  {
    id: '2.7',
    title: 'No TCP socket without TLS',
    offenders: 'ss -ltnp | grep dockerd | grep -vE ":(80|443) "; ps -o args= -C dockerd | grep tcp:',
  },
  {
    id: '2.8',
    title: 'Default limits of open files and processes',
    offenders: 'grep -q default-ulimits /etc/docker/daemon.json || echo none',
    not: 'processes are bounded by container (5.29); databases and proxies need their many files',
  },
  {
    id: '2.9',
    title: 'User namespaces',
    offenders: "docker info -f '{{json .SecurityOptions}}' | grep -q name=userns || echo none",
    not: 'files of /opt/kgc, the certificates and the secrets are mounted with their owners',
  },
  { id: '2.10', title: 'The default cgroup', offenders: 'grep cgroup-parent /etc/docker/daemon.json' },
  { id: '2.11', title: 'The base device has its size', offenders: 'grep basesize /etc/docker/daemon.json' },
  {
    id: '2.12',
    title: "An authorization plugin for the client's commands",
    offenders: "docker info -f '{{json .Plugins.Authorization}}' | grep -q '\\[' || echo none",
    not: 'there is one client, deploy, who may do everything',
  },
  {
    id: '2.13',
    title: 'Logs go to another machine',
    offenders: daemon('{{.LoggingDriver}}', 'syslog|gelf|fluentd|awslogs|splunk'),
    not: 'they stay on the server, within bounds',
  },
  {
    id: '2.14',
    title: 'No new privileges',
    offenders: 'grep -q \'"no-new-privileges": true\' /etc/docker/daemon.json || echo off',
  },
  { id: '2.15', title: 'Live restore', offenders: daemon('{{.LiveRestoreEnabled}}', 'true') },
  { id: '2.16', title: 'No userland proxy', offenders: 'pgrep -a docker-proxy' },
  {
    id: '2.17',
    title: 'A seccomp profile',
    offenders: "docker info -f '{{json .SecurityOptions}}' | grep -q name=seccomp || echo none",
  },
  {
    id: '2.18',
    title: 'No experimental features',
    offenders: "docker version -f '{{.Server.Experimental}}' | grep -vx false",
  },
  {
    id: '3.1',
    title: "Owner and rights of systemd's files (to 3.4)",
    offenders: rights(
      '/usr/lib/systemd/system/docker.service /usr/lib/systemd/system/docker.socket /etc/systemd/system/docker.service.d/kgc-firewall.conf',
      '644 root:root',
    ),
  },
  { id: '3.5', title: 'Owner and rights of /etc/docker (and 3.6)', offenders: rights('/etc/docker', '755 root:root') },
  {
    id: '3.15',
    title: "Owner and rights of the daemon's socket (and 3.16)",
    offenders: rights('/run/docker.sock', '660 root:docker'),
  },
  {
    id: '3.17',
    title: 'Owner and rights of daemon.json (and 3.18)',
    offenders: rights('/etc/docker/daemon.json', '644 root:root'),
  },
  {
    id: '3.19',
    title: 'Owner and rights of /etc/default/docker (and 3.20)',
    offenders: rights('/etc/default/docker', '644 root:root'),
  },
  {
    id: '3.23',
    title: "Owner and rights of containerd's socket (and 3.24)",
    offenders: rights('/run/containerd/containerd.sock', '660 root:root'),
  },
  {
    id: '4.5',
    title: 'Content trust',
    offenders: '[ "$DOCKER_CONTENT_TRUST" = 1 ] || echo off',
    not: 'releases are pinned by digest, which says more',
  },
  { id: '5.1', title: 'No swarm', offenders: daemon('{{.Swarm.LocalNodeState}}', 'inactive') },
  {
    id: '5.2',
    title: 'AppArmor',
    offenders: "docker info -f '{{json .SecurityOptions}}' | grep -q name=apparmor || echo none",
    not: 'not here: the kernel is that of the machine around this container',
  },
  {
    id: '5.3',
    title: 'SELinux',
    offenders: "docker info -f '{{json .SecurityOptions}}' | grep -q name=selinux || echo none",
    not: 'Debian and Ubuntu have AppArmor instead',
  },
  {
    id: '5.4',
    title: 'All capabilities dropped but the named ones',
    offenders: containers('{{.HostConfig.CapDrop}}', '\\[ALL\\]'),
  },
  { id: '5.5', title: 'No privileged containers', offenders: containers('{{.HostConfig.Privileged}}', 'false') },
  {
    id: '5.6',
    title: "None of the system's folders mounted",
    offenders: containers('{{range .Mounts}}{{.Source}} {{end}}', '(/(opt/kgc|var/lib/docker)/\\S+ ?)*'),
    not: 'node-exporter reads them, read-only, to measure the server',
  },
  {
    id: '5.7',
    title: 'No sshd in containers',
    offenders: `docker ps --format '{{.Names}}' | while read -r name; do docker top $name -eo pid,comm | awk '$2 == "sshd"'; done`,
  },
  {
    id: '5.8',
    title: 'No ports below 1024',
    offenders: "docker ps --format '{{.Ports}}' | grep -E ':(80|443)->'",
    not: 'the site is on 80 and 443',
  },
  {
    id: '5.9',
    title: 'Only 80 and 443 are published',
    offenders: "docker ps --format '{{.Ports}}' | grep -oE ':[0-9]+->' | grep -vE ':(80|443)->'",
  },
  {
    id: '5.10',
    title: "Not the host's network",
    offenders: containers('{{.HostConfig.NetworkMode}}', '(?!host).*').replace('grep -vE', 'grep -vP'),
  },
  {
    id: '5.11',
    title: 'Memory is bounded',
    offenders: containers('{{.HostConfig.Memory}}', '[1-9][0-9]*'),
  },
  {
    id: '5.12',
    title: 'CPU is bounded',
    offenders: containers('{{.HostConfig.NanoCpus}}', '[1-9][0-9]*'),
  },
  {
    id: '5.13',
    title: 'The root file system is read-only',
    offenders: containers('{{.HostConfig.ReadonlyRootfs}}', 'true'),
    not: "PostgreSQL's image and the vendors' write into theirs",
  },
  {
    id: '5.14',
    title: 'Ports are bound to one interface',
    offenders: "docker ps --format '{{.Ports}}' | grep -E '0\\.0\\.0\\.0:'",
    not: 'the firewall says who may come in, on every interface',
  },
  {
    id: '5.15',
    title: 'Restarted at most 5 times',
    offenders: containers('{{.HostConfig.RestartPolicy.Name}}', 'on-failure|no'),
    not: 'a service that comes back after an hour is better than one that does not',
  },
  {
    id: '5.16',
    title: "Not the host's processes, IPC or name (and 5.17, 5.21)",
    offenders: containers(
      '({{.HostConfig.PidMode}}{{.HostConfig.UTSMode}}) {{.HostConfig.IpcMode}}',
      '\\(\\) (private)?',
    ),
  },
  { id: '5.18', title: "None of the host's devices", offenders: containers('{{.HostConfig.Devices}}', '\\[\\]') },
  {
    id: '5.19',
    title: 'Limits of open files and processes are changed only where needed',
    offenders: containers('{{range .HostConfig.Ulimits}}{{.Name}} {{end}}', ''),
  },
  {
    id: '5.20',
    title: 'No mounts that are shared',
    offenders:
      "docker ps -q | xargs docker inspect -f '{{.Name}} {{range .Mounts}}{{.Propagation}} {{end}}' | grep shared",
  },
  {
    id: '5.22',
    title: 'The seccomp profile is on, and no new privileges (and 5.26)',
    offenders: containers('{{.HostConfig.SecurityOpt}}', '\\[no-new-privileges(:true)?\\]'),
  },
  {
    id: '5.23',
    title: "No command runs in a container with all rights or as another user (and 5.24): the audit's records say so",
    offenders: 'command -v auditctl > /dev/null || echo no auditd',
    not: NO_AUDIT,
  },
  { id: '5.25', title: 'The default cgroup', offenders: containers('{{.HostConfig.CgroupParent}}', '') },
  { id: '5.27', title: 'Health is checked', offenders: containers('{{if .State.Health}}checked{{end}}', 'checked') },
  {
    id: '5.28',
    title: 'The newest image of its name runs',
    offenders: "docker ps --format '{{.Image}}' | grep -v :latest",
    not: 'each is pinned, so that what runs is what was tested',
  },
  {
    id: '5.29',
    title: 'The number of processes is bounded',
    offenders: containers('{{.HostConfig.PidsLimit}}', '[1-9][0-9]*'),
  },
  {
    id: '5.30',
    title: 'Not on the default bridge',
    offenders: containers('{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}', '(kgc_\\S+ ?)+'),
  },
  {
    id: '5.31',
    title: "Not the host's user namespace",
    offenders: containers('{{.HostConfig.UsernsMode}}', ''),
  },
  {
    id: '5.32',
    title: "No container has the daemon's socket",
    offenders:
      "docker ps -q | xargs docker inspect -f '{{.Name}} {{range .Mounts}}{{.Source}} {{end}}' | grep docker.sock",
  },
]
