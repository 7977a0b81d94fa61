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

/**
 * Asks for a name to be typed before something that cannot be taken back by answering again.
 * @param given the --confirm flag; without a terminal it is the only way
 * @throws Stop (exit 2) when another name was given, or when nobody can be asked
 */
export async function confirmName(question: string, name: string, given: string | undefined): Promise<void> {
  if (given === name) return
  if (given !== undefined)
    throw new Stop(`${question}\n--confirm ${given} is not ${name}; nothing was changed.`, [], EXIT.usage)
  if (!process.stdin.isTTY || process.env.CI)
    throw new Stop(`${question}\nNobody can be asked here.`, [`Give --confirm ${name} to go on.`], EXIT.usage)
  const { default: prompts } = await import('prompts')
  const { typed } = await prompts({ type: 'text', name: 'typed', message: `${question}\nType ${name} to go on:` })
  if (typed !== name) throw new Stop('Not confirmed; nothing was changed.', [], EXIT.usage)
}
