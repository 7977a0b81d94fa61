import { createHash } from 'node:crypto'
import type { Host } from './host.ts'
import { putFile, type ServerFile } from './put-file.ts'
import { script, sh } from './shell.ts'

/** Those of the files that are missing on the host, or have another content, owner or mode there. */
export async function differingFiles(host: Host, files: ServerFile[]): Promise<ServerFile[]> {
  const found = await host.read(
    script(`
for file in ${sh`${files.map(({ path }) => path)}`.shell}; do
  if [ -f "$file" ]; then echo "$(sha256sum < "$file" | cut -d ' ' -f 1) $(stat -c '%a %U' "$file")"; else echo missing; fi
done`),
  )
  const lines = found.split('\n')
  return files.filter(({ content, mode = '600' }, index) => lines[index] !== `${sha256(content)} ${mode} root`)
}

export const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')

/** Puts each file in its place, by rename. */
export async function putFiles(host: Host, files: ServerFile[]): Promise<void> {
  for (const { path, content, ...rights } of files) await putFile(host, path, content, rights)
}
