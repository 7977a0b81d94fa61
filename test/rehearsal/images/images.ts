import type { System } from '../system.ts'

/**
 * Every image of the rehearsal, in the order in which they are built (what others are built on comes first).
 *
 * Compose knows the images by the names of production: the server pulls the customer's own from the rehearsal's
 * registry, and Docker Hub's from its mirror.
 *
 * Real programs, from Debian's packages: systemd and sshd of the server, what it installs from the mirror, the registry, pebble, the S3 server (Ceph), PostgreSQL 15 with
 * pgvector, Redis (7.0, not 7.4), nginx (1.30), Prometheus, Alertmanager and the exporters (each a little older than
 * the pinned upstream version), and all of the backup image, which is built from production's own Dockerfile.
 * Stood in for, by the programs in ../stand-in: the KGC backend and frontend, Twenty, Chatwoot, Horilla, Grafana,
 * and the services outside that are sent messages (sink).
 */
export interface Image {
  /** Folder beside this file that has the Dockerfile. */
  folder: string
  /** `here`: stays on this machine. `registry`: name below ${REGISTRY}. `hub`: name of Docker Hub, for the mirror. */
  where: 'here' | 'registry' | 'hub'
  name: string
  /** The suites of Debian and Ubuntu that it starts from. */
  suites: readonly ('bookworm' | 'trixie' | 'forky' | System)[]
  /** Only for a server of this system. */
  system?: System
  /** Program in ../stand-in, bundled as app.cjs into the build context. */
  standIn?: string
  /** Only for the tests on a virtual machine. */
  machine?: true
  /** Its program is scripts/backup.ts, bundled as production's is. */
  bundles?: true
  buildArgs?: Readonly<Record<string, string>>
}

export const images: readonly Image[] = [
  { folder: 'base', where: 'here', name: 'kgc-rehearsal/base', suites: ['forky'] },
  { folder: 'node', where: 'here', name: 'kgc-rehearsal/node', suites: ['forky'] },

  ...(['trixie', 'bookworm'] as const).map(
    (suite): Image => ({
      folder: 'blank',
      where: 'here',
      name: `kgc-rehearsal/blank:${suite}`,
      suites: [suite],
      buildArgs: { SUITE: suite },
    }),
  ),
  { folder: 'packages', where: 'here', name: 'kgc-rehearsal/packages', suites: ['trixie', 'bookworm'] },
  ...(['jammy', 'noble'] as const).flatMap((suite): Image[] =>
    ['blank', 'packages'].map((part) => ({
      folder: `${part}-ubuntu`,
      where: 'here',
      name: `kgc-rehearsal/${part}-ubuntu:${suite}`,
      suites: [suite],
      system: suite,
      buildArgs: { SUITE: suite },
    })),
  ),
  { folder: 'visitor', where: 'here', name: 'kgc-rehearsal/visitor', suites: ['trixie'] },
  { folder: 'registry', where: 'here', name: 'kgc-rehearsal/registry', suites: ['bookworm'] },
  { folder: 's3', where: 'here', name: 'kgc-rehearsal/s3', suites: ['bookworm'] },
  { folder: 'sink', where: 'here', name: 'kgc-rehearsal/sink', suites: ['forky'], standIn: 'sink.ts' },
  { folder: 'acme', where: 'here', name: 'kgc-rehearsal/acme', suites: ['forky'], standIn: 'acme.ts' },

  { folder: 'postgres', where: 'hub', name: 'pgvector/pgvector:0.8.6-pg15-bookworm', suites: ['bookworm'] },
  {
    folder: '../../../compose/pitr',
    where: 'registry',
    name: 'postgres:15-1',
    suites: ['bookworm'],
    buildArgs: { BASE: 'kgc-rehearsal/hub/pgvector/pgvector:0.8.6-pg15-bookworm' },
  },
  { folder: 'redis', where: 'hub', name: 'redis:7.4-alpine', suites: ['bookworm'] },
  { folder: 'nginx', where: 'hub', name: 'nginx:1.30-alpine', suites: ['forky'] },
  { folder: 'prometheus', where: 'hub', name: 'prom/prometheus:v3.15.0', suites: ['forky'] },
  { folder: 'alertmanager', where: 'hub', name: 'prom/alertmanager:v0.34.0', suites: ['forky'] },
  { folder: 'grafana', where: 'hub', name: 'grafana/grafana:13.2.3', suites: ['forky'], standIn: 'grafana.ts' },
  { folder: 'machine', where: 'here', name: 'kgc-rehearsal/machine', suites: ['trixie', 'bookworm'], machine: true },
  {
    folder: 'machine-packages',
    where: 'here',
    name: 'kgc-rehearsal/machine-packages',
    suites: ['bookworm', 'forky'],
    machine: true,
  },
  {
    folder: 'postgres-exporter',
    where: 'hub',
    name: 'prometheuscommunity/postgres-exporter:v0.20.1',
    suites: ['forky'],
  },
  { folder: 'redis-exporter', where: 'hub', name: 'oliver006/redis_exporter:v1.88.0-alpine', suites: ['forky'] },
  { folder: 'node-exporter', where: 'hub', name: 'prom/node-exporter:v1.12.1', suites: ['forky'] },
  { folder: 'blackbox-exporter', where: 'hub', name: 'prom/blackbox-exporter:v0.28.0', suites: ['forky'] },

  ...[
    { VERSION: 'v1' },
    { VERSION: 'v2' },
    { VERSION: 'v3-unhealthy', BEHAVIOR: 'unhealthy' },
    { VERSION: 'v4-broken', BEHAVIOR: 'broken' },
    { VERSION: 'v5-slow', WARMUP_MS: '3000' },
  ].flatMap((buildArgs): Image[] => [
    {
      folder: 'backend',
      where: 'registry',
      name: `backend:${buildArgs.VERSION}`,
      suites: ['forky'],
      standIn: 'backend.ts',
      buildArgs,
    },
    {
      folder: 'frontend',
      where: 'registry',
      name: `frontend:${buildArgs.VERSION}`,
      suites: ['forky'],
      standIn: 'frontend.ts',
      buildArgs: { VERSION: buildArgs.VERSION },
    },
  ]),
  { folder: 'twenty', where: 'registry', name: 'twenty:v2.45.0', suites: ['forky'], standIn: 'twenty.ts' },
  { folder: 'chatwoot', where: 'registry', name: 'chatwoot:v4.18.0-ce', suites: ['forky'], standIn: 'chatwoot.ts' },
  { folder: 'horilla', where: 'registry', name: 'horilla:1.5.0-kgc1', suites: ['forky'], standIn: 'horilla.ts' },
  { folder: 'backup-base', where: 'here', name: 'kgc-rehearsal/backup-base', suites: ['bookworm', 'forky'] },
  {
    folder: '../../../compose/backup-service',
    where: 'registry',
    name: 'backup:3',
    suites: ['bookworm', 'forky'],
    bundles: true,
    buildArgs: {
      DATABASE: 'kgc-rehearsal/backup-base',
      NODE: 'kgc-rehearsal/backup-base',
    },
  },
]
