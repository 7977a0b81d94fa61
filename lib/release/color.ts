import { EXIT, Stop } from '../errors.ts'

/** The two places in which a release can run. One serves, the other is free for the next release. */
export type Color = 'blue' | 'green'
export type Active = { color: Color; version: string }

export const other = (color: Color): Color => (color === 'blue' ? 'green' : 'blue')
export const servicesOf = (color: Color) => [`kgc-backend-${color}`, `kgc-frontend-${color}`]

/** nginx's file that says which color serves. It is the only place that knows; `parseActive` reads it back. */
export function renderActive(active: Active | undefined): string {
  if (!active) return NOTHING_ACTIVE
  const { color, version } = active
  return `# Which color serves. Written by deploy and rollback, replaced by rename; never edit it by hand.
# Idle connections are closed before the application closes them (Node's default is 5 s): no request meets a closing one.
upstream kgc_backend  { server kgc-backend-${color}:3000;  keepalive 32; keepalive_timeout 4s; }
upstream kgc_frontend { server kgc-frontend-${color}:3000; keepalive 32; keepalive_timeout 4s; }
map "" $kgc_release { default "${releaseName({ color, version })}"; }
`
}

/** The active file before the first deploy: nginx runs and answers with its maintenance page. */
const NOTHING_ACTIVE = `# Nothing was deployed yet. Written by deploy, replaced by rename; never edit it by hand.
upstream kgc_backend  { server 127.0.0.1:9 down; }
upstream kgc_frontend { server 127.0.0.1:9 down; }
map "" $kgc_release { default "none none"; }
`

/** What the running workers answer at /release, in front of their process id. */
export const releaseName = (active: Active | undefined) =>
  active ? `${active.color} ${active.version}` : NOTHING_DEPLOYED
export const NOTHING_DEPLOYED = 'none none'

/** @returns undefined unless it is the name of a release */
export function parseReleaseName(name: string): Active | undefined {
  const [, color, version] = /^(blue|green) (v\d\S*)$/.exec(name) ?? []
  return color && version ? { color: color as Color, version } : undefined
}

/**
 * @param file the text of release.conf
 * @returns undefined when nothing was deployed yet
 * @throws Stop (exit 5) when the file is not one that `renderActive` wrote
 */
export function parseActive(file: string): Active | undefined {
  if (file.trim() === '' || file === NOTHING_ACTIVE) return undefined
  const [, color, version] = /\$kgc_release \{ default "(blue|green) (v\d+[\w.-]*)"; \}/.exec(file) ?? []
  if (!color || !version || file !== renderActive({ color: color as Color, version })) {
    throw damagedActive()
  }
  return { color: color as Color, version }
}

export const damagedActive = () =>
  new Stop(
    'state/nginx/release.conf on the server is not a file that deploy wrote, so it cannot say which color serves.',
    ['See RUNBOOK.md, "release.conf is damaged".'],
    EXIT.needsHuman,
  )

/** The Compose variables of one color: which images it runs, pinned by digest. */
export function renderColorEnv(color: Color, version: string, images: { backend: string; frontend: string }): string {
  const prefix = color.toUpperCase()
  return `${prefix}_VERSION=${version}
${prefix}_BACKEND_IMAGE=${images.backend}
${prefix}_FRONTEND_IMAGE=${images.frontend}
`
}
