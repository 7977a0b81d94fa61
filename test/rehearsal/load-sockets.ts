import type { Agent } from 'node:https'
import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import type { Clock, Moment } from './load.ts'
import { parse } from './load-request.ts'

export type SocketReport = {
  opens: number
  /** Attempts to connect that led to no connection. */
  refused: (Moment & { reason: string })[]
  /** How each connection ended, and how long it then took until there was one again. */
  closes: (Moment & { code: number; clean: boolean; withoutMs: number })[]
  closesByCode: Record<string, number>
  messages: number
  /** Messages whose echo never came. */
  echoesLost: number
  withoutMs: number
}

/** The server said goodbye: done, going away, or restarting. Anything else is a cut. */
const CLEAN = new Set([1000, 1001, 1012])
const MESSAGE_EVERY_MS = 1_000
const RECONNECT_AFTER_MS = 75
const HANDSHAKE_MS = 10_000
const LAST_ECHO_MS = 5_000
const GOODBYE_MS = 1_000

/** Keeps that many clients connected. They start one after another within a second, as they would not all come at once. */
export function openSockets(url: string, agent: Agent, count: number, clock: Clock) {
  const clients = Array.from({ length: count }, (_, i) =>
    keepConnected(url, agent, (i * MESSAGE_EVERY_MS) / count, clock),
  )
  return { stop: () => Promise.all(clients.map((client) => client.stop())) }
}

function keepConnected(url: string, agent: Agent, startAfterMs: number, clock: Clock) {
  const report: SocketReport = {
    opens: 0,
    refused: [],
    closes: [],
    closesByCode: {},
    messages: 0,
    echoesLost: 0,
    withoutMs: 0,
  }
  const waitingFor = new Set<number>()
  let socket: WebSocket | undefined
  let withoutSince: number | undefined
  let stopping = false
  let leaving = false
  let speaking: NodeJS.Timeout | undefined
  let connecting = setTimeout(connect, startAfterMs)

  function connect() {
    const current = new WebSocket(url, { agent, handshakeTimeout: HANDSHAKE_MS, perMessageDeflate: false })
    socket = current
    let opened = false
    let reason = 'closed before it was open'
    const say = () => {
      if (current.readyState !== WebSocket.OPEN) return
      waitingFor.add(report.messages)
      current.send(String(report.messages))
      report.messages += 1
    }
    current.on('open', () => {
      opened = true
      report.opens += 1
      endGap()
      say()
      if (!stopping) speaking = setInterval(say, MESSAGE_EVERY_MS)
    })
    current.on('message', (data) => {
      const echo = parse(String(data))?.echo
      if (echo !== undefined) waitingFor.delete(Number(echo))
    })
    current.on('error', (error) => {
      reason = error.message
    })
    current.on('close', (code) => {
      clearInterval(speaking)
      socket = undefined
      report.echoesLost += waitingFor.size
      waitingFor.clear()
      if (leaving) return
      const moment = clock.moment(clock.now())
      if (opened) {
        report.closes.push({ ...moment, code, clean: CLEAN.has(code), withoutMs: 0 })
        report.closesByCode[code] = (report.closesByCode[code] ?? 0) + 1
      } else report.refused.push({ ...moment, reason })
      withoutSince ??= moment.msSinceStart
      if (!stopping) connecting = setTimeout(connect, RECONNECT_AFTER_MS)
    })
  }

  function endGap() {
    if (withoutSince === undefined) return
    const gap = Math.round(clock.now() - withoutSince)
    const last = report.closes.at(-1)
    if (last) last.withoutMs = gap
    report.withoutMs += gap
    withoutSince = undefined
  }

  async function stop(): Promise<SocketReport> {
    stopping = true
    clearTimeout(connecting)
    clearInterval(speaking)
    endGap()
    await until(() => waitingFor.size === 0, LAST_ECHO_MS)
    leaving = true
    socket?.close(1000)
    await until(() => socket === undefined, GOODBYE_MS)
    socket?.terminate()
    await until(() => socket === undefined, GOODBYE_MS)
    return report
  }
  return { stop }
}

async function until(done: () => boolean, timeoutMs: number): Promise<void> {
  for (const end = performance.now() + timeoutMs; !done() && performance.now() < end; ) await sleep(10)
}
