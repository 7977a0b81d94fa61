import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { readRanges } from '../../lib/firewall/cloudflare.ts'
import { PROJECT_DIR, RUNNER_ADDRESS } from './names.ts'

export type Published = { ipv4_cidrs: unknown; ipv6_cidrs: unknown }
type Answer = { status: number; headers?: Record<string, string>; body: string }

const FILE = 'nginx/cloudflare.conf'
const committed = readRanges(readFileSync(join(PROJECT_DIR, FILE), 'utf8'), FILE).map(({ text }) => text)
/** What Cloudflare publishes, as of this repository's list, with ranges added or left out. */
export const publish = (added: string[] = [], without: string[] = []): Published => {
  const ranges = [...committed.filter((range) => !without.includes(range)), ...added]
  const [ipv4_cidrs, ipv6_cidrs] = [/\./, /:/].map((family) => ranges.filter((range) => family.test(range)))
  return { ipv4_cidrs, ipv6_cidrs }
}

const json = (status: number, body: unknown): Answer => ({
  status,
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(body),
})
/** The shape that Cloudflare documents for `GET /client/v4/ips`. */
export const answerWith = (result: Published): Answer =>
  json(200, {
    result: { ...result, etag: '38f79d050aa027e3be3865e495dcc9bc' },
    success: true,
    errors: [],
    messages: [],
  })
const error = (status: number, code: number, message: string) =>
  json(status, { success: false, errors: [{ code, message }], messages: [], result: null })

/** Stands in for Cloudflare's API, on this machine's address in the rehearsal's network. */
export async function cloudflareApi() {
  let answer = answerWith(publish())
  let asked = 0
  const server = createServer((request, response) => {
    const known = request.url === '/client/v4/ips'
    if (known) asked += 1
    const { status, headers, body } = !known
      ? error(404, 7003, `Could not route to ${request.url}, perhaps your object identifier is invalid?`)
      : request.method === 'GET'
        ? answer
        : error(405, 10405, 'Method not allowed for this authentication scheme')
    response.writeHead(status, headers).end(body)
  })
  await new Promise<void>((resolve) => server.listen(0, RUNNER_ADDRESS, resolve))
  return {
    url: `http://${RUNNER_ADDRESS}:${(server.address() as AddressInfo).port}/client/v4/ips`,
    says: (next: Answer) => {
      answer = next
    },
    asked: () => asked,
    stop: () => new Promise((resolve) => server.close(resolve)),
  }
}
