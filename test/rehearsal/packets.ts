import { script, sh } from '../../lib/shell.ts'
import { docker, local } from './engine.ts'
import { ipv6 } from './ipv6.ts'
import { DOMAIN, IMAGES, NETWORKS, SERVER } from './names.ts'
import { inServer } from './server.ts'

/**
 * What came of one connection: a listener's answer, a closed port's, or nothing. Anything else, a slow start of the
 * prober too, is an error and never taken for `filtered`.
 */
export type Answer = 'open' | 'refused' | 'filtered'

const inNetwork = (address: string, last: number) => address.replace(/\d+$/, String(last))

/** The machines that packets come from. `cloudflare` lies in the range that plays Cloudflare's. */
const CLIENTS = {
  admin: { network: NETWORKS.main.name, address: inNetwork(SERVER.address, 60), server: SERVER.address },
  stranger: { network: NETWORKS.main.name, address: inNetwork(SERVER.address, 61), server: SERVER.address },
  cloudflare: {
    network: NETWORKS.edge.name,
    address: inNetwork(SERVER.edgeAddress, 150),
    server: SERVER.edgeAddress,
  },
} as const
type Client = keyof typeof CLIENTS
const NAMES = Object.keys(CLIENTS) as Client[]

export type Source = Client | `${Client}6`
/** The addresses that packets come from; the names that end in 6 are IPv6. */
export const SOURCES = Object.fromEntries(
  NAMES.flatMap((client) => {
    const { address, server } = CLIENTS[client]
    return [
      [client, { client, address, server }],
      [`${client}6`, { client, address: ipv6(address), server: ipv6(server) }],
    ]
  }),
) as Record<Source, { client: Client; address: string; server: string }>
export const SOURCE_NAMES = Object.keys(SOURCES) as Source[]

const container = (client: Client) => `${SERVER.container}-${client}`

export async function startClients(): Promise<void> {
  await stopClients()
  await Promise.all(
    NAMES.map((client) => {
      const { network, address } = CLIENTS[client]
      return docker(
        sh`run -d --init --name ${container(client)} --network ${network} --ip ${address} --ip6 ${ipv6(address)} --entrypoint sleep ${`${IMAGES}/visitor`} 3600`,
      )
    }),
  )
}

export const stopClients = () => local.probe(sh`docker rm -f -v ${NAMES.map(container)}`)

/** For an address of either family. What is refused within the call, only the call tells: the socket looks as if it were open. */
const CONNECT = String.raw`
use strict; use Socket qw(:all); use IO::Handle; use Errno qw(EINPROGRESS ECONNREFUSED); use Fcntl; use Time::HiRes qw(time);
sub start {
  my ($host, $port) = $_[0] =~ /^(.*) (\d+)$/ or die "no target: $_[0]";
  my $family = $host =~ /:/ ? AF_INET6 : AF_INET;
  my $to = inet_pton($family, $host) or die "no address: $host";
  socket(my $socket, $family, SOCK_STREAM, 0) or die $!;
  fcntl($socket, F_SETFL, O_NONBLOCK) or die $!;
  return $socket if connect($socket, $family == AF_INET6 ? pack_sockaddr_in6($port, $to) : pack_sockaddr_in($port, $to)) or $! == EINPROGRESS;
  return 'refused' if $! == ECONNREFUSED;
  die "$_[0]: $!";
}
`

/** One process per client tries all targets at once, each from a source port of its own. */
const PROBER = String.raw`${CONNECT}
my %open;
for (@ARGV) { my $socket = start($_); if (ref $socket) { $open{$_} = $socket } else { print "$_: refused\n" } }
my $end = time + 1.5;
while (%open and (my $left = $end - time) > 0) {
  my $bits = ''; vec($bits, fileno($_), 1) = 1 for values %open;
  my $count = select(undef, my $ready = $bits, undef, $left);
  last if $count <= 0;
  for my $target (keys %open) {
    next unless vec($ready, fileno($open{$target}), 1);
    my $error = unpack('i', getsockopt($open{$target}, SOL_SOCKET, SO_ERROR));
    print "$target: ", ($error == 0 ? 'open' : $error == ECONNREFUSED ? 'refused' : "error $error"), "\n";
    delete $open{$target};
  }
}
print "$_: filtered\n" for keys %open;
`

/** @returns the answer to each `address port` target */
function parseAnswers(output: string, targets: string[], from: string): Record<string, Answer> {
  const lines = output.split('\n')
  return Object.fromEntries(
    targets.map((target) => {
      const answer = lines.find((line) => line.startsWith(`${target}: `))?.slice(target.length + 2)
      if (answer !== 'open' && answer !== 'refused' && answer !== 'filtered')
        throw new Error(`Probe of ${target} from ${from}: ${answer ?? 'no answer of the prober'}`)
      return [target, answer]
    }),
  )
}

async function probeFrom(client: Client, targets: string[]): Promise<Record<string, Answer>> {
  return parseAnswers(await docker(sh`exec ${container(client)} perl -e ${PROBER} ${targets}`), targets, client)
}

/** What one source gets from ports of the server. */
export async function probe(source: Source, ports: string[]): Promise<Record<string, Answer>> {
  const { client, server } = SOURCES[source]
  const answers = await probeFrom(
    client,
    ports.map((port) => `${server} ${port}`),
  )
  return Object.fromEntries(ports.map((port) => [port, answers[`${server} ${port}`] as Answer]))
}

/**
 * A machine on a network segment of the server's own: a network namespace beside it, since the networks of this
 * machine's Docker would drop what does not fit them. `device` is the server's end of the cable.
 */
export type Side = { name: string; device: string; address: string; address6: string }
const GATEWAY = '192.0.2.1'
/** It sends packets straight to containers, from an address that plays Cloudflare's. */
export const NEIGHBOR: Side = {
  name: 'neighbor',
  device: 'kgc-side',
  address: inNetwork(SERVER.edgeAddress, 200),
  address6: ipv6(inNetwork(SERVER.edgeAddress, 200)),
}

export const startSide = ({ name, device, address, address6 }: Side) =>
  local.read(
    inServer(
      script(`
ip netns del ${name} 2> /dev/null || true
ip link del ${device} 2> /dev/null || true
set -e
ip netns add ${name} && ip link add ${device} type veth peer name side netns ${name}
# Docker turns IPv6 off for what has none when the container starts.
echo 0 > /proc/sys/net/ipv6/conf/${device}/disable_ipv6
ip addr add ${GATEWAY}/32 dev ${device} && ip -6 addr add ${ipv6(GATEWAY)}/128 dev ${device} nodad && ip link set ${device} up
ip route add ${address}/32 dev ${device} && ip -6 route add ${address6}/128 dev ${device}
ip -n ${name} link set lo up && ip -n ${name} link set side up
ip -n ${name} addr add ${address}/32 dev side && ip -n ${name} -6 addr add ${address6}/128 dev side nodad
ip -n ${name} route add ${GATEWAY}/32 dev side && ip -n ${name} route add default via ${GATEWAY} src ${address}
ip -n ${name} -6 route add ${ipv6(GATEWAY)}/128 dev side && ip -n ${name} -6 route add default via ${ipv6(GATEWAY)} src ${address6}`),
    ),
  )
export const stopSide = ({ name, device }: Side) =>
  local.probe(inServer(script(`ip netns del ${name}; ip link del ${device}`)))

/** What such a machine gets from `address port` targets. */
export async function probeFromSide({ name }: Side, targets: string[]): Promise<Record<string, Answer>> {
  return parseAnswers(await local.read(inServer(sh`ip netns exec ${name} perl -e ${PROBER} ${targets}`)), targets, name)
}

/** All sources at all ports, as `source port` lines. */
export async function matrix(ports: string[]): Promise<{ cells: number; open: string[]; refused: string[] }> {
  const answers: Record<string, Answer> = {}
  for (const part of await Promise.all(
    NAMES.map(async (client) => {
      const sources = SOURCE_NAMES.filter((source) => SOURCES[source].client === client)
      const cells = sources.flatMap((source) =>
        ports.map((port) => [`${source} ${port}`, `${SOURCES[source].server} ${port}`] as const),
      )
      const found = await probeFrom(
        client,
        cells.map(([, target]) => target),
      )
      return Object.fromEntries(cells.map(([cell, target]) => [cell, found[target] as Answer]))
    }),
  ))
    Object.assign(answers, part)
  const of = (wanted: Answer) => Object.keys(answers).filter((cell) => answers[cell] === wanted)
  return { cells: Object.keys(answers).length, open: of('open'), refused: of('refused') }
}

/**
 * Programs on the server that listen, each `v4 PORT` or `v6 PORT`: over IPv6 they stand where docker-proxy would, for
 * what is published from a network without IPv6.
 */
export const listen = (targets: string[]) =>
  local.read(
    inServer(
      sh`systemctl stop kgc-listeners 2> /dev/null; systemd-run -q --collect --unit=kgc-listeners perl -e ${LISTENER} ${targets}`,
    ),
  )
export const stopListening = () => local.probe(inServer(sh`systemctl stop kgc-listeners`))

const LISTENER = `
use strict; use Socket qw(:all);
my @sockets = map {
  my ($family, $port) = split / /; my $six = $family eq 'v6';
  socket(my $socket, $six ? AF_INET6 : AF_INET, SOCK_STREAM, 0) or die $!;
  setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1); setsockopt($socket, IPPROTO_IPV6, IPV6_V6ONLY, 1) if $six;
  bind($socket, $six ? pack_sockaddr_in6($port, IN6ADDR_ANY) : pack_sockaddr_in($port, INADDR_ANY)) or die "$_: $!";
  listen($socket, 100) or die $!; $socket;
} @ARGV;
while (1) {
  my $bits = ''; vec($bits, fileno($_), 1) = 1 for @sockets;
  select($bits, undef, undef, undef);
  for (@sockets) { accept(my $client, $_) if vec($bits, fileno($_), 1) }
}
`

/** Sends back what it gets, over both families. */
const ECHO = `
use strict; use Socket qw(:all);
my ($port) = @ARGV;
my @sockets = map {
  socket(my $socket, $_, SOCK_DGRAM, 0) or die $!;
  setsockopt($socket, IPPROTO_IPV6, IPV6_V6ONLY, 1) if $_ == AF_INET6;
  bind($socket, $_ == AF_INET6 ? pack_sockaddr_in6($port, IN6ADDR_ANY) : pack_sockaddr_in($port, INADDR_ANY)) or die $!;
  $socket;
} AF_INET, AF_INET6;
while (1) {
  my $bits = ''; vec($bits, fileno($_), 1) = 1 for @sockets;
  select($bits, undef, undef, undef);
  for (@sockets) { if (vec($bits, fileno($_), 1)) { my $from = recv($_, my $text, 100, 0); send($_, $text, 0, $from) } }
}
`
export const echoUdp = (port: string) =>
  local.read(inServer(sh`systemd-run -q --collect --unit=kgc-udp perl -e ${ECHO} ${port}`))
export const stopEcho = () => local.probe(inServer(sh`systemctl stop kgc-udp`))

const DATAGRAM = `
use strict; use Socket qw(:all);
my ($host, $port) = @ARGV;
my $family = $host =~ /:/ ? AF_INET6 : AF_INET;
my $to = inet_pton($family, $host);
socket(my $socket, $family, SOCK_DGRAM, 0) or die $!;
send($socket, 'hello', 0, $family == AF_INET6 ? pack_sockaddr_in6($port, $to) : pack_sockaddr_in($port, $to)) or die $!;
my $there = '';
vec($there, fileno($socket), 1) = 1;
print select($there, undef, undef, 1.5) > 0 ? 'open' : 'filtered';
`
/** Whether a datagram to a port of the server is answered. */
export const probeUdp = (source: Source, port: string) =>
  docker(sh`exec ${container(SOURCES[source].client)} perl -e ${DATAGRAM} ${SOURCES[source].server} ${port}`)

const PING = `my $ping = Net::Ping->new({ proto => $ARGV[1], timeout => 3 }); print $ping->ping($ARGV[0]) ? 'answered' : 'silent'`
export const ping = (source: Source) =>
  docker(
    sh`exec ${container(SOURCES[source].client)} perl -MNet::Ping -e ${PING} ${SOURCES[source].server} ${source.endsWith('6') ? 'icmpv6' : 'icmp'}`,
  )

const HALVES = String.raw`
use strict; use IO::Socket::INET;
my $socket = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => 80, Timeout => 5) or die $!;
$socket->autoflush(1);
print $socket "GET / HTTP/1.1\r\nHost: $ARGV[2]\r\n";
sleep $ARGV[1];
print $socket "Connection: close\r\n\r\n";
print scalar <$socket>;
`
/** Asks nginx in two halves, so many seconds apart, over one connection. @returns the first line of the answer */
export const askInHalves = (source: Source, seconds: number) =>
  docker(sh`exec ${container(SOURCES[source].client)} perl -e ${HALVES} ${SOURCES[source].server} ${seconds} ${DOMAIN}`)

/** A restart of the server, on a busy machine. */
const LONGEST_TRY_SECONDS = 300
/** Tries without a pause until it is told to stop; a try that nobody answers takes 0.1 s. */
const TRIER = String.raw`${CONNECT}
my ($tries, $open, $stop) = (0, 0, 0); $SIG{TERM} = sub { $stop = 1 };
until ($stop) {
  my $socket = eval { start($ARGV[0]) };
  $tries++;
  # While the server boots there is no way to it at all.
  select(undef, undef, undef, 0.1), next unless $socket;
  next unless ref $socket;
  my $bits = ''; vec($bits, fileno($socket), 1) = 1;
  $open++ if select(undef, my $ready = $bits, undef, 0.1) > 0 and unpack('i', getsockopt($socket, SOL_SOCKET, SO_ERROR)) == 0;
}
print "$tries $open\n";
`

/** Says, once stopped, how many of its tries were let in. One client has one of these at a time. */
export function keepTrying(source: Source, port: string): () => Promise<{ tries: number; open: number }> {
  const { client, server } = SOURCES[source]
  const ended = docker(sh`exec ${container(client)} perl -e ${TRIER} ${`${server} ${port}`}`, LONGEST_TRY_SECONDS)
  return async () => {
    await docker(sh`exec ${container(client)} pkill -TERM -x perl`)
    const [tries = 0, open = 0] = (await ended).split(' ').map(Number)
    return { tries, open }
  }
}
