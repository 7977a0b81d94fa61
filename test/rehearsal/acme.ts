import { readFileSync } from 'node:fs'
import { script, sh } from '../../lib/shell.ts'
import { docker, local } from './engine.ts'
import { ACME, CLOUDFLARE_API, DOMAIN, IMAGES, inState, NETWORKS, SERVER } from './names.ts'
import { inServer, until } from './server.ts'

/** A token that may edit the zone, one that may only read it, and one that Cloudflare does not know. */
export const DNS_TOKENS = { edit: 'e'.repeat(40), read: 'r'.repeat(40), unknown: 'u'.repeat(40) }
const ZONE = DOMAIN.split('.').slice(1).join('.')
const TRUSTED = '/usr/local/share/ca-certificates/kgc-rehearsal.crt'
const CONTROL = `http://${ACME.address}:8080`

/** The authority, on the closed network; and the server believes that it, and Cloudflare's API, are there. */
export async function startAcme(): Promise<void> {
  await stopAcme()
  const settings = {
    SERVER_ADDRESS: SERVER.address,
    ZONE,
    DNS_TOKEN: DNS_TOKENS.edit,
    DNS_READ_TOKEN: DNS_TOKENS.read,
  }
  const env = Object.entries(settings).flatMap(([name, value]) => ['--env', `${name}=${value}`])
  await docker(
    sh`run -d --init --name ${ACME.container} --network ${NETWORKS.main.name} --ip ${ACME.address} ${env} --volume ${`${inState('acme')}:/config:ro`} ${`${IMAGES}/acme`}`,
  )
  await local.read(
    inServer(
      script(`
grep -q ' ${ACME.host} ' /etc/hosts || echo '${ACME.address} ${ACME.host} ${CLOUDFLARE_API}' >> /etc/hosts
cat > ${TRUSTED} <<'END'
${readFileSync(inState('ca.pem'), 'utf8')}END
update-ca-certificates > /dev/null 2>&1`),
    ),
  )
  await until(
    async () => (await local.probe(sh`curl -fs -m 5 -o /dev/null ${`${CONTROL}/root`}`)).code === 0,
    'the authority',
  )
}

export async function stopAcme(): Promise<void> {
  await local.probe(sh`docker rm -f -v ${ACME.container}`)
  await local.probe(inServer(script(`rm -f ${TRUSTED}; update-ca-certificates > /dev/null 2>&1`)))
}

const control = async (path: string, method = 'GET') => {
  const answer = await fetch(CONTROL + path, { method, signal: AbortSignal.timeout(5000) })
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status}`)
  return answer.text()
}

/** `down` refuses connections; `limited` answers every order as Let's Encrypt does who asked too often. */
export const authorityIs = (mode: 'normal' | 'down' | 'limited') => control(`/mode?is=${mode}`, 'PUT')
/** The certificate that the authority signs with, as PEM: new at each of its starts. */
export const authorityRoot = () => control('/root')
export const ordersAsked = async () => (JSON.parse(await control('/orders')) as { orders: number }).orders
export const recordsLeft = async () => JSON.parse(await control('/records')) as unknown[]
