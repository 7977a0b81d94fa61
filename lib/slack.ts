import { messageOf } from './errors.ts'
import type { Log } from './log.ts'

const TIMEOUT_MS = 5_000

/**
 * Posts a message to the incoming webhook. A deploy does not fail because Slack does: what went wrong is said, no more.
 * @param webhook undefined when none is configured
 */
export async function notify(log: Log, webhook: string | undefined, text: string): Promise<void> {
  if (!webhook) return log.say('  no SLACK_WEBHOOK_URL, so nobody is told')
  try {
    const answer = await fetch(webhook, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ text: escaped(text) }),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    })
    if (!answer.ok) log.warn(`Slack did not take the message: HTTP ${answer.status} ${await answer.text()}`)
  } catch (error) {
    log.warn(`Slack did not take the message: ${messageOf(error)}`)
  }
}

/** Slack's three control characters; its documentation, "Formatting text". */
const escaped = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
