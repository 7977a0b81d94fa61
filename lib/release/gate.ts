import { setTimeout as sleep } from 'node:timers/promises'
import { BadRelease } from '../errors.ts'
import type { Host } from '../host.ts'
import { PROXY } from '../layout.ts'
import { withoutSecrets } from '../secrets.ts'
import { script, sh } from '../shell.ts'
import { type Color, servicesOf } from './color.ts'

/** "curl /health (3 retry)", the customer's document, section 3. */
const RETRIES = 3

/**
 * The health gate: asks the new release for its health from inside nginx's network until it answers 200, at most
 * 1 + 3 times a while. On failure the last lines of its log are part of the error.
 * @param seconds how long each try may take; an application may need that long to start
 * @param onRetry told before each retry
 */
export async function healthGate(
  host: Host,
  { color, seconds }: { color: Color; seconds: number },
  onRetry: (text: string) => void,
): Promise<void> {
  const urls = healthUrls(color)
  for (let attempt = 0; attempt <= RETRIES; attempt++) {
    if (attempt > 0) onRetry(`not healthy after ${seconds} s; retry ${attempt} of ${RETRIES}`)
    const end = Date.now() + seconds * 1000
    do {
      const left = Math.max(1, Math.ceil((end - Date.now()) / 1000))
      if ((await host.probe(askHealth(urls, left), { timeout: left + 20 })).code === 0) return
      // It may have ended early for a reason of its own, such as a dockerd that restarts.
      await sleep(200)
    } while (Date.now() < end)
  }
  throw await explainUnhealthy(host, color, urls, seconds)
}

/** The frontend is static files: it is healthy when it gives its page. */
const healthUrls = (color: Color) => [`http://kgc-backend-${color}:3000/health`, `http://kgc-frontend-${color}:3000/`]

/** Asks every 0.1 s. */
function askHealth(urls: string[], seconds: number) {
  const loop = `
end=$(($(date +%s) + ${seconds}))
for url in ${urls.join(' ')}; do
  until curl -fs -o /dev/null --max-time 2 "$url"; do [ "$(date +%s)" -lt "$end" ] || exit 1; sleep 0.1; done
done`
  return sh`docker exec ${PROXY} sh -c ${loop}`
}

async function explainUnhealthy(host: Host, color: Color, urls: string[], seconds: number): Promise<BadRelease> {
  const services = servicesOf(color)
  const look = script(`
for service in ${services.join(' ')}; do
  docker ps -a --filter name="^kgc-$service-1$" --format '{{.Names}}: {{.Status}}'
  docker logs --tail 20 "kgc-$service-1" 2>&1 | sed 's/^/  /'
done
for url in ${urls.join(' ')}; do
  docker exec ${PROXY} curl -s -o /dev/null --max-time 2 -w "GET $url -> %{http_code}\\n" "$url" 2>/dev/null || echo "GET $url -> no answer"
done`)
  const report = await host.read(withoutSecrets(look))
  return new BadRelease(`The new release did not become healthy in ${RETRIES + 1} tries of ${seconds} s.\n${report}`, [
    'Read the log above. When it only needs longer to start, raise HEALTH_TIMEOUT.',
  ])
}
