import { EXIT, Stop } from './errors.ts'

/**
 * Asks a yes-or-no question; no is the default. Without a terminal it never asks: a piped `y` would confirm (prompts, measured).
 * @param yes the --yes flag
 * @throws Stop (exit 2) when the answer is no, or when nobody can be asked
 */
export async function confirm(question: string, yes: boolean): Promise<void> {
  if (yes) return
  if (!process.stdin.isTTY || process.env.CI)
    throw new Stop(`${question}\nNobody can be asked here.`, ['Give --yes to go on.'], EXIT.usage)
  const { default: prompts } = await import('prompts')
  const { go } = await prompts({ type: 'confirm', name: 'go', message: question, initial: false })
  if (!go) throw new Stop('Not confirmed; nothing was changed.', [], EXIT.usage)
}
