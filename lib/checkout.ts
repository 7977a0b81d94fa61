import { createReadStream } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Stop } from './errors.ts'
import type { Host } from './host.ts'
import { ROOT } from './layout.ts'
import { type Command, chain, script, sh } from './shell.ts'

export type Commit = { hash: string; author: string; subject: string; dirty: boolean }

/** The commit of this checkout: its files are what the server will run. */
export async function localCommit(local: Host): Promise<Commit> {
  const [hash = '', author = '', subject = ''] = (await local.read(sh`git log -1 --format=${'%H%n%an%n%s'}`)).split(
    '\n',
  )
  const dirty = (await local.read(sh`git status --porcelain`)) !== ''
  return { hash, author, subject, dirty }
}

/**
 * Sends the commit to the server as a git bundle over the connection that is open anyway: the server needs no access
 * to GitHub, and a deploy works while GitHub is down.
 * @param have the commit that the server has, or '' when it has none
 */
export async function sendCommit(local: Host, host: Host, commit: string, have: string): Promise<void> {
  const known = have !== '' && (await local.probe(sh`git cat-file -e ${`${have}^{commit}`}`)).code === 0
  const folder = await mkdtemp(join(tmpdir(), 'kgc-bundle-'))
  const file = join(folder, 'commit.bundle')
  try {
    // A bundle holds refs, not bare commits, so the commit gets one for the moment.
    const ref = `refs/kgc/${commit}`
    await local.read(
      chain(
        sh`git update-ref ${ref} ${commit}`,
        sh`git bundle create -q ${file} ${ref} ${known ? ['--not', have] : []}`,
        sh`git update-ref -d ${ref}`,
      ),
    )
    const bundle = createReadStream(file)
    await host.write(receiveCommit(commit), { input: bundle, timeout: 120 }).finally(() => bundle.destroy())
  } catch (error) {
    if ((await local.read(sh`git rev-parse --is-shallow-repository`)) !== 'true') throw error
    throw new Stop('This is a shallow clone, so the commit cannot be sent whole.', [
      'git fetch --unshallow (in Actions: fetch-depth: 0), then again.',
    ])
  } finally {
    await rm(folder, { recursive: true })
  }
}

/** Reads a bundle on stdin and keeps its commit. */
export const receiveCommit = (commit: string): Command =>
  script(`
cd ${ROOT}
bundle=$(mktemp); trap 'rm -f "$bundle"' EXIT
cat > "$bundle"
git fetch -q "$bundle" refs/kgc/${commit}:refs/kgc/next
git cat-file -e ${commit}
`)

/** Where the files of the next commit lie while they are tested. It has its own view of everything that is not in git. */
export const NEXT = 'state/next'

export const unpackNext = (commit: string): Command =>
  script(`
umask 022
cd ${ROOT} && rm -rf ${NEXT} && mkdir -p ${NEXT}
git archive ${commit} | tar -x -C ${NEXT}
for shared in .env state certs secrets; do ln -s ${ROOT}/$shared ${NEXT}/$shared; done
`)

/** Makes the server's files those of the commit. Containers with users of their own read them, hence the umask. */
export const checkoutCommit = (commit: string): Command =>
  chain(sh`cd ${ROOT}`, sh`umask 022`, sh`git checkout -q --detach ${commit}`, sh`rm -rf ${NEXT}`)
