import { createReadStream } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { CHECKOUT_PENDING, ROOT } from '../layout.ts'
import type { Log } from '../log.ts'
import { type Command, script, sh } from '../shell.ts'

export type Commit = { hash: string; author: string; subject: string; dirty: boolean }

/** The commit of this checkout: its files are what the server will run. */
export async function localCommit(local: Host): Promise<Commit> {
  const [commit, changes] = await Promise.all([
    local.read(sh`git log -1 --format=${'%H%n%an%n%s'}`),
    local.read(sh`git status --porcelain`),
  ])
  const [hash = '', author = '', subject = ''] = commit.split('\n')
  return { hash, author, subject, dirty: changes !== '' }
}

/**
 * Sends this checkout's commit to the server as a git bundle over the connection that is open anyway: the server needs
 * no access to GitHub, and a deploy works while GitHub is down.
 * @param have the commit that the server runs, or '' when it has none
 */
export async function sendCommit(local: Host, host: Host, commit: string, have: string): Promise<void> {
  if (await hasCommit(host, ROOT, commit)) return
  const known = have !== '' && (await hasCommit(local, '.', have))
  const makeBundle = (file: string) => sh`git bundle create -q ${file} HEAD ${known ? ['--not', have] : []}`
  try {
    await fromFile(local, makeBundle, (bundle) => host.write(receiveCommit(commit), { input: bundle, timeout: 120 }))
  } catch (error) {
    if ((await local.read(sh`git rev-parse --is-shallow-repository`)) !== 'true') throw error
    throw new Stop('This is a shallow clone, so the commit cannot be sent whole.', [
      'git fetch --unshallow (in Actions: fetch-depth: 0), then again.',
    ])
  }
}

export const hasCommit = async (host: Host, repository: string, commit: string) =>
  (await host.probe(sh`git -C ${repository} cat-file -e ${`${commit}^{commit}`}`)).code === 0

/** Gives the stack's files of a commit, as a tar archive, to the work. */
export const withFiles = <T>(local: Host, commit: string, work: (tar: Readable) => Promise<T>): Promise<T> =>
  fromFile(local, (file) => sh`git archive --format tar --output ${file} ${commit} compose nginx monitoring`, work)

/** Lets git write a temporary file, and gives what is in it to the work. */
async function fromFile<T>(local: Host, make: (file: string) => Command, work: (content: Readable) => Promise<T>) {
  const folder = await mkdtemp(join(tmpdir(), 'kgc-git-'))
  const file = join(folder, 'content')
  try {
    await local.read(make(file))
    const content = createReadStream(file)
    return await work(content).finally(() => content.destroy())
  } finally {
    await rm(folder, { recursive: true })
  }
}

/** Reads a bundle on stdin and keeps its commit, under a ref of its own so that git never throws it away. */
const receiveCommit = (commit: string): Command =>
  script(`
set -e
cd ${ROOT}
bundle=$(mktemp)
trap 'rm -f "$bundle"' EXIT
cat > "$bundle"
git fetch -q "$bundle" +HEAD:refs/kgc/${commit}
git cat-file -e ${commit}
`)

/** Where the files of the next commit lie while they are tested. It has its own view of everything that is not in git. */
export const NEXT = 'state/next'

export const unpackNext = (commit: string): Command =>
  script(`
set -e
umask 022
cd ${ROOT}
rm -rf ${NEXT}
mkdir -p ${NEXT}
git archive --output ${NEXT}.tar ${commit}
tar -x -C ${NEXT} -f ${NEXT}.tar
rm ${NEXT}.tar
for shared in .env state certs secrets; do ln -s ${ROOT}/$shared ${NEXT}/$shared; done
`)

/**
 * Makes the server's files those of the commit, also after a checkout that was cut off in the middle. Containers with
 * users of their own read them, hence the umask.
 */
export const checkoutCommit = (commit: string): Command =>
  script(`
set -e
umask 022
cd ${ROOT}
: > ${CHECKOUT_PENDING}
rm -f .git/index.lock
git checkout -q --force --detach ${commit}
rm -rf ${NEXT} ${CHECKOUT_PENDING}
`)

/** For the way back: where nothing was checked out, edits by hand are still there, and stay. */
export const checkoutUnlessThere = (commit: string): Command =>
  script(`
cd ${ROOT}
if [ -e ${CHECKOUT_PENDING} ] || [ "$(git rev-parse HEAD)" != ${commit} ]; then
${checkoutCommit(commit).shell}
fi`)

/** Keeps what somebody changed by hand in the server's checkout, before another commit takes its place. */
export async function keepEdits(log: Log, host: Host): Promise<void> {
  const kept = await host.write(
    script(`
cd ${ROOT}
edits=$(git stash create) || exit
[ -z "$edits" ] || { git stash store -q -m 'before a rollback' "$edits" && echo kept; }`),
  )
  if (kept) log.warn(`Files were changed by hand in ${ROOT} on the server. They are kept: git -C ${ROOT} stash show -p`)
}
