/**
 * Reads what a survey of a server prints: lines of `name=value`, where a name may come several times.
 * @returns `all` values of a name, in their order, and the first `one`, or ''
 */
export function valuesIn(output: string): { all: (name: string) => string[]; one: (name: string) => string } {
  const lines = output.split('\n')
  const all = (name: string) =>
    lines.filter((line) => line.startsWith(`${name}=`)).map((line) => line.slice(name.length + 1))
  return { all, one: (name) => all(name)[0] ?? '' }
}
