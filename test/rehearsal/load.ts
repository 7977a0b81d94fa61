import { randomUUID } from 'node:crypto'
import { Agent } from 'node:https'
import { ask, connectTo, type Door, type Planned, planOf } from './load-request.ts'
import { openSockets, type SocketReport } from './load-sockets.ts'

export type Moment = { at: string; msSinceStart: number }
export type Lost = Moment & { kind: Planned['kind']; connection: Planned['connection']; reason: string }

export type LoadReport = {
  startedAt: string
  /** How long requests were being sent. */
  seconds: number
  sent: number
  ok: number
  /** Requests per second that were really sent, and the longest that one left after its time. */
  rate: number
  worstLagMs: number
  lost: Lost[]
  /** For each version that answered: when the first and the last of the requests that it answered were sent. */
  versions: Record<string, { requests: number; first: Moment; last: Moment }>
  /** Of the answers that were right, in milliseconds, without the time that the server was asked to take. */
  latency: { p50: number; p99: number; max: number }
  /** What every POST's id begins with. */
  idPrefix: string
  /** Ids of the POSTs that were answered rightly: each must be in the database. */
  acknowledged: string[]
  /** Ids of the others: each may be there or not. */
  unacknowledged: string[]
  websockets: SocketReport[]
  /** What this whole process used meanwhile, in percent of one core. */
  cpuPercent: number
}

export type Load = {
  /** Sends no more, waits for what is on its way, and tells. Belongs in a `finally`: the load never ends by itself. */
  stop(): Promise<LoadReport>
}

export type Clock = ReturnType<typeof startClock>

function startClock() {
  const [began, beganAt] = [performance.now(), Date.now()]
  return {
    now: () => performance.now() - began,
    moment: (ms: number): Moment => ({
      at: new Date(beganAt + ms).toISOString(),
      msSinceStart: Math.round(ms),
    }),
  }
}

/**
 * Loads the site as its users do: a request every 1/rate seconds whether or not the earlier ones are answered, and
 * websockets that stay open. A request is sent once; whatever does not end in its own right answer is lost, also when
 * a browser would have repeated it unnoticed.
 */
export function startLoad(door: Door, { rate = 200, websockets = 50, timeoutMs = 10_000 } = {}): Load {
  const clock = startClock()
  const cpu = process.cpuUsage()
  const { url, agentOptions } = connectTo(door)
  const agents = {
    // The connection that was idle longest comes first, so that all of them stay in use.
    kept: new Agent({ ...agentOptions, keepAlive: true, scheduling: 'fifo' }),
    // Without remembered sessions: each is a visitor who comes for the first time.
    new: new Agent({ ...agentOptions, keepAlive: false, maxCachedSessions: 0 }),
  }
  const sockets = openSockets(`${url.replace(/^http/, 'ws')}/ws`, agents.new, websockets, clock)

  const idPrefix = `load-${randomUUID().slice(0, 8)}-`
  const pending = new Set<Promise<void>>()
  const lost: Lost[] = []
  const latencies: number[] = []
  const versions: LoadReport['versions'] = {}
  const acknowledged: string[] = []
  const unacknowledged: string[] = []
  let [sent, worstLagMs] = [0, 0]

  async function send(n: number, due: number): Promise<void> {
    const plan = planOf(n)
    const id = `${idPrefix}${n}`
    const began = clock.now()
    worstLagMs = Math.max(worstLagMs, began - due)
    const { version, reason } = await ask(url, agents[plan.connection], plan, id, timeoutMs)
    const moment = clock.moment(began)
    if (plan.kind === 'post') (reason === undefined ? acknowledged : unacknowledged).push(id)
    if (reason !== undefined) {
      lost.push({ ...moment, kind: plan.kind, connection: plan.connection, reason })
      return
    }
    latencies.push(clock.now() - began - plan.ms)
    versions[version] ??= { requests: 0, first: moment, last: moment }
    const seen = versions[version]
    seen.requests += 1
    if (moment.msSinceStart < seen.first.msSinceStart) seen.first = moment
    if (moment.msSinceStart > seen.last.msSinceStart) seen.last = moment
  }

  let timer: NodeJS.Timeout
  let isOver = false
  /** Sends all that is due; after a pause of this process that may be several at once. */
  function sendDue() {
    // The end may come between the timer and what it began.
    if (isOver) return
    const due = () => (sent * 1000) / rate
    while (due() <= clock.now()) {
      const work = send(sent, due())
      pending.add(work)
      void work.then(() => pending.delete(work))
      sent += 1
    }
    // First what has arrived, then what is due: a request must not go into a connection whose end is here already. nginx closes idle
    // ones 2 s after a reload; with this process stopped for 3 s at each of 5 reloads, 185 of 2,002 requests were lost, and 0 or 1 so.
    timer = setTimeout(() => setImmediate(sendDue), due() - clock.now())
  }
  sendDue()

  async function finish(): Promise<LoadReport> {
    isOver = true
    clearTimeout(timer)
    const ms = clock.now()
    const { user, system } = process.cpuUsage(cpu)
    const [reports] = await Promise.all([sockets.stop(), ...pending])
    for (const agent of Object.values(agents)) agent.destroy()
    latencies.sort((a, b) => a - b)
    const latency = (share: number) => oneDecimal(latencies[Math.ceil(latencies.length * share) - 1] ?? 0)
    return {
      startedAt: clock.moment(0).at,
      seconds: oneDecimal(ms / 1000),
      sent,
      ok: latencies.length,
      rate: oneDecimal((sent * 1000) / ms),
      worstLagMs: oneDecimal(worstLagMs),
      lost: lost.sort((a, b) => a.msSinceStart - b.msSinceStart),
      versions,
      latency: { p50: latency(0.5), p99: latency(0.99), max: latency(1) },
      idPrefix,
      acknowledged,
      unacknowledged,
      websockets: reports,
      cpuPercent: oneDecimal((user + system) / 10 / ms),
    }
  }
  let report: Promise<LoadReport> | undefined
  return {
    stop: () => {
      report ??= finish()
      return report
    },
  }
}

const oneDecimal = (value: number) => Math.round(value * 10) / 10
