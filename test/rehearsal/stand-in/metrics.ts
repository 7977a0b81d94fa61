// The metrics that the dashboards and alerts are written for, as a Prometheus client library would give them.
const buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10]

interface Series {
  labels: string
  counts: number[]
  total: number
  sum: number
}

export class Metrics {
  private requests = new Map<string, number>()
  private durations = new Map<string, Series>()
  gauges = { websocket_connections_active: 0 }
  counters = { sync_jobs_total: 0, sync_jobs_failed: 0 }

  request(method: string, route: string, status: number, seconds: number) {
    const labels = `method="${method}",route="${route}"`
    const counter = `${labels},status="${status}"`
    this.requests.set(counter, (this.requests.get(counter) ?? 0) + 1)
    const series = this.durations.get(labels) ?? { labels, counts: buckets.map(() => 0), total: 0, sum: 0 }
    this.durations.set(labels, series)
    const first = buckets.findIndex((bucket) => seconds <= bucket)
    if (first >= 0) series.counts[first] = (series.counts[first] ?? 0) + 1
    series.total += 1
    series.sum += seconds
  }

  text(): string {
    const lines = ['# TYPE http_requests_total counter']
    for (const [labels, count] of this.requests) lines.push(`http_requests_total{${labels}} ${count}`)
    lines.push('# TYPE http_request_duration_seconds histogram')
    for (const { labels, counts, total, sum } of this.durations.values()) {
      let below = 0
      for (const [index, bucket] of buckets.entries()) {
        below += counts[index] ?? 0
        lines.push(`http_request_duration_seconds_bucket{${labels},le="${bucket}"} ${below}`)
      }
      lines.push(
        `http_request_duration_seconds_bucket{${labels},le="+Inf"} ${total}`,
        `http_request_duration_seconds_sum{${labels}} ${sum}`,
        `http_request_duration_seconds_count{${labels}} ${total}`,
      )
    }
    for (const [name, value] of Object.entries(this.gauges)) lines.push(`# TYPE ${name} gauge`, `${name} ${value}`)
    for (const [name, value] of Object.entries(this.counters)) lines.push(`# TYPE ${name} counter`, `${name} ${value}`)
    return `${lines.join('\n')}\n`
  }
}
