/** Text for a POSIX shell: made by `sh`, which quotes every value in it, or by `script`. */
export type Command = { readonly shell: string }

type Argument = string | number | readonly string[] | Command

const SAFE_WORD = /^[\w@%+:,./-]+$/

/**
 * Quotes one word for a POSIX shell.
 * Not zx's own quote: that one writes bash's `$'…'`, which dash, the `sh` of Debian and Ubuntu, cannot read.
 * @throws when the word holds a NUL byte, which no argument can carry
 */
export function quote(word: string): string {
  if (word.includes('\0')) throw new Error('A command argument cannot contain a NUL byte.')
  return SAFE_WORD.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}

/** Builds a command. Strings and numbers become one word each, arrays one word per item, commands are put in as they are. */
export function sh(strings: TemplateStringsArray, ...args: Argument[]): Command {
  return { shell: String.raw({ raw: strings }, ...args.map(asText)).trim() }
}

/** Puts commands one after another; the next one runs only if the one before succeeded. */
export const chain = (...commands: Command[]): Command => ({
  // Of a text of several lines, `&&` would bind the last one only; so it gets a shell of its own that stops at a failure.
  shell: commands.map(({ shell }) => (shell.includes('\n') ? `sh -ec ${quote(shell)}` : shell)).join(' && '),
})

/** A longer script, given as plain text with its values already quoted by `quote` or written by us. */
export const script = (text: string): Command => ({ shell: text.trim() })

function asText(arg: Argument): string {
  if (typeof arg === 'string') return quote(arg)
  if (typeof arg === 'number') return String(arg)
  return 'shell' in arg ? arg.shell : arg.map(quote).join(' ')
}
