import { script, sh } from '../../lib/shell.ts'
import { docker, local } from './engine.ts'
import { NETWORKS, PREFIX, SERVER } from './names.ts'
import { inServer } from './server.ts'

/**
 * What came of one connection: a listener's answer, a closed port's, or nothing. Anything else, a slow start of the
 * prober too, is an error and never taken for `filtered`.
 */
export type Answer = 'open' | 'refused' | 'filtered'

const inNetwork = (address: string, last: number) => address.replace(/\d+$/, String(last))

/** Where packets come from. `cloudflare` lies in the range that plays Cloudflare's. */
export const SOURCES = {
  admin: { network: NETWORKS.main.name, address: inNetwork(SERVER.address, 40), server: SERVER.address },
  stranger: { network: NETWORKS.main.name, address: inNetwork(SERVER.address, 41), server: SERVER.address },
  cloudflare: {
    network: NETWORKS.edge.name,
    address: inNetwork(SERVER.edgeAddress, 150),
    server: SERVER.edgeAddress,
  },
} as const
export type Source = keyof typeof SOURCES

const container = (source: Source) => `${SERVER.container}-${source}`

export async function startClients(): Promise<void> {
  await stopClients()
  await Promise.all(
    Object.entries(SOURCES).map(([source, { network, address }]) =>
      docker(
        sh`run -d --init --name ${container(source as Source)} --network ${network} --ip ${address} --entrypoint sleep ${`${PREFIX}/blank:trixie`} 3600`,
      ),
    ),
  )
}

export const stopClients = () =>
  local.probe(sh`docker rm -f -v ${Object.keys(SOURCES).map((source) => container(source as Source))}`)

/** One process per source tries all targets at once, each from a source port of its own. */
const PROBER = String.raw`
use strict; use Socket; use IO::Handle; use Errno qw(EINPROGRESS ECONNREFUSED); use Fcntl; use Time::HiRes qw(time);
my %open;
for my $target (@ARGV) {
  my ($host, $port) = split /:/, $target;
  socket(my $socket, PF_INET, SOCK_STREAM, 0) or die $!;
  fcntl($socket, F_SETFL, O_NONBLOCK) or die $!;
  connect($socket, pack_sockaddr_in($port, inet_aton($host))) or $! == EINPROGRESS or $! == ECONNREFUSED or die "$target: $!";
  $open{$target} = $socket;
}
my $end = time + 1.5;
while (%open and (my $left = $end - time) > 0) {
  my $bits = ''; vec($bits, fileno($_), 1) = 1 for values %open;
  my $count = select(undef, my $ready = $bits, undef, $left);
  last if $count <= 0;
  for my $target (keys %open) {
    next unless vec($ready, fileno($open{$target}), 1);
    my $error = unpack('i', getsockopt($open{$target}, SOL_SOCKET, SO_ERROR));
    print "$target ", ($error == 0 ? 'open' : $error == ECONNREFUSED ? 'refused' : "error $error"), "\n";
    delete $open{$target};
  }
}
print "$_ filtered\n" for keys %open;
`

/** @param targets ports of the server */
export async function probe(source: Source, targets: string[]): Promise<Record<string, Answer>> {
  const full = targets.map((port) => `${SOURCES[source].server}:${port}`)
  const lines = (await docker(sh`exec ${container(source)} perl -e ${PROBER} ${full}`)).split('\n')
  return Object.fromEntries(
    targets.map((target, index) => {
      const answer = lines.find((line) => line.startsWith(`${full[index]} `))?.slice((full[index] ?? '').length + 1)
      if (answer !== 'open' && answer !== 'refused' && answer !== 'filtered')
        throw new Error(`Probe of ${full[index]} from ${source}: ${answer ?? 'no answer of the prober'}`)
      return [target, answer]
    }),
  )
}

/**
 * A machine on the server's own network segment that sends packets straight to containers. It is a network namespace
 * beside the server's: the networks of this machine's Docker would drop such packets themselves. Its address is one of
 * Cloudflare's.
 */
const NEIGHBOR = { address: inNetwork(SERVER.edgeAddress, 200), gateway: '192.0.2.1' }
export const startNeighbor = () =>
  local.read(
    inServer(
      script(`
ip netns del neighbor 2> /dev/null || true
ip netns add neighbor
ip link add kgc-side type veth peer name side netns neighbor
ip addr add ${NEIGHBOR.gateway}/32 dev kgc-side && ip link set kgc-side up && ip route add ${NEIGHBOR.address}/32 dev kgc-side
ip -n neighbor link set lo up && ip -n neighbor link set side up && ip -n neighbor addr add ${NEIGHBOR.address}/32 dev side
ip -n neighbor route add ${NEIGHBOR.gateway}/32 dev side && ip -n neighbor route add default via ${NEIGHBOR.gateway}`),
    ),
  )
export const stopNeighbor = () => local.probe(inServer(script('ip netns del neighbor; ip link del kgc-side')))

/** What the neighbor gets from `address:port` targets. */
export async function probeStraight(targets: string[]): Promise<Record<string, Answer>> {
  const lines = await local.read(inServer(sh`ip netns exec neighbor perl -e ${PROBER} ${targets}`))
  return Object.fromEntries(lines.split('\n').map((line) => line.split(/ (.*)/).slice(0, 2) as [string, Answer]))
}

/** All sources at all targets, as `source → target: answer` lines without those that are filtered. */
export async function matrix(targets: string[]): Promise<{ cells: number; open: string[]; refused: string[] }> {
  const rows = await Promise.all(
    (Object.keys(SOURCES) as Source[]).map(async (source) => ({ source, answers: await probe(source, targets) })),
  )
  const of = (wanted: Answer) =>
    rows.flatMap(({ source, answers }) =>
      Object.entries(answers).flatMap(([target, answer]) => (answer === wanted ? [`${source} ${target}`] : [])),
    )
  return { cells: rows.length * targets.length, open: of('open'), refused: of('refused') }
}

/** Tries without a pause until it is told to stop; a try that nobody answers takes 0.1 s. */
const TRIER = String.raw`
use strict; use Socket; use Fcntl;
my ($host, $port) = @ARGV; my ($tries, $open, $stop) = (0, 0, 0); $SIG{TERM} = sub { $stop = 1 };
until ($stop) {
  socket(my $socket, PF_INET, SOCK_STREAM, 0) or die $!;
  fcntl($socket, F_SETFL, O_NONBLOCK) or die $!;
  connect($socket, pack_sockaddr_in($port, inet_aton($host)));
  my $bits = ''; vec($bits, fileno($socket), 1) = 1;
  $tries++;
  $open++ if select(undef, my $ready = $bits, undef, 0.1) > 0 and unpack('i', getsockopt($socket, SOL_SOCKET, SO_ERROR)) == 0;
}
print "$tries $open\n";
`

/** Says, once stopped, how many of its tries were let in. */
export function keepTrying(source: Source, port: string): () => Promise<{ tries: number; open: number }> {
  const ended = docker(sh`exec ${container(source)} perl -e ${TRIER} ${SOURCES[source].server} ${port}`)
  return async () => {
    await docker(sh`exec ${container(source)} pkill -TERM -x perl`)
    const [tries = 0, open = 0] = (await ended).split(' ').map(Number)
    return { tries, open }
  }
}
