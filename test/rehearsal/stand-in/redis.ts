// A stand-in's own Redis user, used for real.
import { createClient } from 'redis'
import { message } from './common.ts'

/** A client that reconnects for as long as it lives, and answers at once when it has no connection. */
export function openRedis(url: string, password?: string) {
  const address = new URL(url)
  if (password) address.password = password
  const client = createClient({
    url: address.href,
    disableOfflineQueue: true,
    socket: { connectTimeout: 2_000, reconnectStrategy: 500 },
  })
  let last = ''
  client.on('ready', () => console.log(`redis: connected${last ? ' again' : ''}`))
  client.on('error', (error) => {
    if (message(error) !== last) console.error(`redis: ${message(error)}`)
    last = message(error)
  })
  client.connect().catch(() => undefined)
  return client
}

export type Redis = ReturnType<typeof openRedis>

/** Writes the time under a key of its own, so that one can see in Redis who is alive. */
export function heartbeat(redis: Redis, key: string) {
  const beat = () =>
    redis.set(key, new Date().toISOString(), { expiration: { type: 'EX', value: 60 } }).catch(() => undefined)
  redis.on('ready', beat)
  setInterval(beat, 10_000).unref()
}
