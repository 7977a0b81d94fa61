import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Host } from './host.ts'
import { type Command, sh } from './shell.ts'

export type Rights = { owner?: string; group?: string; mode?: string }

/** A file that this project puts on the server; root's, and 0600 unless said otherwise. */
export type ServerFile = Rights & { path: string; content: string }

/** Puts a file in its place on a host, by rename, with its folder where that is missing. Its content comes on stdin. */
export function putFile(host: Host, path: string, content: string, rights: Rights = {}): Promise<string> {
  return host.write(installFile(path, rights), { input: content })
}

function installFile(path: string, { owner = 'root', group = owner, mode = '600' }: Rights): Command {
  const next = `${path}.next`
  return sh`install -D -m ${mode} -o ${owner} -g ${group} /dev/stdin ${next} && mv ${next} ${path}`
}

/** A file of the folder server/ of this repository. */
export const serverText = (name: string) =>
  readFileSync(fileURLToPath(new URL(`../server/${name}`, import.meta.url)), 'utf8')
