import { SITES } from '../certificates/certificates.ts'
import type { Host } from '../host.ts'
import { POSTGRES, ROOT } from '../layout.ts'
import type { Front } from '../settings.ts'
import { script } from '../shell.ts'
import { type Answer, frontDoor } from './front-door.ts'
import type { Check } from './smoke.ts'

/** A certificate must have this long to go; renewal starts at 30 days, so less means that renewal fails. */
const CERTIFICATE_DAYS = 14

/**
 * The checks that need nothing but the public site.
 * @param version when given, the release that must answer: otherwise the old one could pass in its place
 */
export function httpChecks(front: Front, version?: string): Check[] {
  const ask = frontDoor(front)
  const login = once(() =>
    ask(undefined, {
      method: 'POST',
      path: '/api/auth/login',
      json: { email: front.SMOKE_EMAIL, password: front.SMOKE_PASSWORD },
    }),
  )
  const json = (answer: Answer) => parse(answer.body)
  const vendor = (name: string, sub: string, path: string, field: string, value: string): Check => ({
    name,
    about: 'surroundings',
    expected: `200 with ${field} = ${value} at ${sub}.${front.DOMAIN}${path}`,
    run: async () => {
      const answer = await ask(sub, { path })
      return want(answer, answer.status === 200 && String(json(answer)[field]) === value)
    },
  })
  return [
    {
      name: 'API health',
      about: 'release',
      expected: `200 with status = ok${version ? ` and version = ${version}` : ''}`,
      run: async () => {
        const answer = await ask(undefined, { path: '/api/health' })
        const body = json(answer)
        return want(answer, answer.status === 200 && body.status === 'ok' && (!version || body.version === version))
      },
    },
    {
      name: 'login',
      about: 'release',
      expected: '200 with an accessToken',
      run: async () => {
        const answer = await login()
        want(answer, answer.status === 200 && typeof json(answer).accessToken === 'string', true)
        return '200 with an accessToken'
      },
    },
    {
      name: 'login refused without the right password',
      about: 'release',
      expected: '401',
      run: async () => {
        const answer = await ask(undefined, {
          method: 'POST',
          path: '/api/auth/login',
          json: { email: front.SMOKE_EMAIL, password: 'not the password' },
        })
        return want(answer, answer.status === 401)
      },
    },
    {
      name: 'dashboard page',
      about: 'release',
      expected: '200 HTML whose script loads as JavaScript',
      run: async () => {
        const page = await ask(undefined)
        const asset = /(?:src|href)="(\/[^"]+\.js)"/.exec(page.body)?.[1]
        want(page, page.status === 200 && contentType(page).includes('text/html') && asset !== undefined)
        const code = await ask(undefined, { path: asset ?? '' })
        // A single-page application answers 200 with HTML for anything that is missing.
        want(code, code.status === 200 && contentType(code).includes('javascript'))
        return `200 HTML, ${asset} is ${contentType(code)}`
      },
    },
    {
      name: 'dashboard data',
      about: 'release',
      expected: '200 JSON with the token of the login',
      run: async () => {
        const token = json(await login()).accessToken
        const answer = await ask(undefined, { path: '/api/dashboard', headers: { authorization: `Bearer ${token}` } })
        return want(answer, answer.status === 200 && contentType(answer).includes('json'))
      },
    },
    {
      name: 'metrics are not public',
      about: 'release',
      expected: '404 at /api/metrics',
      run: async () => {
        const answer = await ask(undefined, { path: '/api/metrics' })
        return want(answer, answer.status === 404)
      },
    },
    vendor('Chatwoot', 'support', '/health', 'status', 'woot'),
    vendor('Horilla', 'hr', '/health/', 'status', 'ok'),
    {
      name: 'Twenty',
      about: 'surroundings',
      expected: `200 JSON at crm.${front.DOMAIN}/client-config`,
      run: async () => {
        const answer = await ask('crm', { path: '/client-config' })
        // /healthz also answers with an empty schema (seen with a real image); /client-config does not.
        return want(answer, answer.status === 200 && Object.keys(json(answer)).length > 0)
      },
    },
    {
      name: 'certificate',
      about: 'surroundings',
      expected: `valid for every host, ${CERTIFICATE_DAYS} days or more to go`,
      run: async () => {
        const answers = await Promise.all([undefined, ...SITES].map((sub) => ask(sub)))
        const until = Math.min(...answers.map(({ certificateUntil }) => certificateUntil.getTime()))
        const days = Math.floor((until - Date.now()) / 86_400_000)
        const got = `valid until ${new Date(until).toISOString().slice(0, 10)}, ${days} days`
        if (days < CERTIFICATE_DAYS) throw new Error(got)
        return got
      },
    },
  ]
}

/** The databases, each asked as the application's own role over the network, with the password the application has. */
export function databaseChecks(host: Host): Check[] {
  return ['kgc', 'twenty', 'chatwoot', 'horilla'].map((database) => ({
    name: `database ${database}`,
    about: 'surroundings',
    expected: `its own role can use ${database}`,
    run: async () => {
      const { code, stdout, stderr } = await host.probe(askDatabase(database), { timeout: 20 })
      if (code !== 0) throw new Error((stderr || stdout).trim().split('\n').pop() ?? `exit code ${code}`)
      return stdout.trim()
    },
  }))
}

/** The password goes from the server's .env through a pipe: no process shows it in its arguments. */
const askDatabase = (database: string) => {
  const prefix = database.toUpperCase()
  return script(`
cd ${ROOT}
value() { sed -n "s/^$1=//p" .env; }
user=$(value ${prefix}_DB_USER)
value ${prefix}_DB_PASSWORD | docker exec -i ${POSTGRES} sh -c '
  read -r PGPASSWORD; export PGPASSWORD PGCONNECT_TIMEOUT=5
  psql -h postgres -U "$1" -d "$2" -Atqc "select current_user || \\$\\$ in \\$\\$ || current_database()"' ask "$user" ${database}
`)
}

function want(answer: Answer, right: boolean, secret = false): string {
  const got =
    `${answer.status} ${contentType(answer)} ${secret ? '' : answer.body.replace(/\s+/g, ' ').slice(0, 160)}`.trim()
  if (!right) throw new Error(got)
  return got
}

const contentType = (answer: Answer) => String(answer.headers['content-type'] ?? '').split(';')[0] ?? ''

function parse(body: string): Record<string, unknown> {
  try {
    return (JSON.parse(body) ?? {}) as Record<string, unknown>
  } catch {
    return {}
  }
}

function once<T>(work: () => Promise<T>): () => Promise<T> {
  let promise: Promise<T> | undefined
  return () => {
    promise ??= work()
    return promise
  }
}
