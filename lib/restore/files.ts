import { FILE_PATHS } from '../backup/files.ts'
import type { Manifest } from '../backup/manifest.ts'
import { Stop } from '../errors.ts'
import type { Host } from '../host.ts'
import { BACKUP_FOLDER, BACKUP_SERVICE, ROOT } from '../layout.ts'
import type { Log } from '../log.ts'
import { type Command, quote, script } from '../shell.ts'
import { exchangeContent, UNSERVED, WHOLE } from './folders.ts'
import { type Exchange, writersOf } from './swap.ts'

/** Files are restored and set aside in hidden folders of the volumes themselves, so that renaming is enough to exchange them. */
const HIDDEN = '.files_'
/** 50 GB at 1 Gbit/s take 7 minutes; the rest is room. */
const LONGEST_SECONDS = 4 * 3600

/** The volumes, by their paths in the backup-service: `/data/uploads` is `kgc_uploads`. */
const volumeOf = (path: string) => `kgc_${path.split('/').pop()}`
/** Who writes to each volume is who writes to the database beside it. */
const DATABASE_OF: Record<string, string> = { uploads: 'kgc' }
const databaseOf = (path: string) => {
  const name = path.split('/').pop() ?? ''
  return DATABASE_OF[name] ?? name.replace(/-files$/, '')
}

export const restoredFolder = (stamp: string) => `${HIDDEN}restore_${stamp}`
const oldFolder = (stamp: string) => `${HIDDEN}old_${stamp}`

/** A container of the backup's own image that may write to the volumes. */
export const inVolumes = (text: string, more = '--network none') =>
  `docker run --rm --name kgc-restore-files ${more} ${FILE_PATHS.map((path) => `--volume ${volumeOf(path)}:${path}`).join(' ')} --cap-drop ALL --cap-add CHOWN --cap-add DAC_OVERRIDE --cap-add FOWNER --security-opt no-new-privileges --entrypoint sh "$(docker inspect -f '{{.Image}}' ${BACKUP_SERVICE})" -ec ${quote(text)}`

const each = (text: string) => `for path in ${FILE_PATHS.join(' ')}; do cd "$path"; ${text}; done`

/**
 * Restores the files beside those that serve, each compared with what was backed up (restic's --verify), and counted. The keys
 * go from the backup-service's environment through a pipe.
 * @throws Stop when there are more or fewer of them than were backed up: restic finds nothing wrong with a path that is missing
 */
export async function restoreFilesBeside(host: Host, log: Log, files: NonNullable<Manifest['files']>, stamp: string) {
  const target = `${HIDDEN}partial`
  const one = `
rm -rf ${target}
restic --quiet --no-lock --cache-dir /var/lib/backup/restic-cache -o s3.bucket-lookup=path \${S3_CA_FILE:+--cacert "$S3_CA_FILE"} \\
  -r "s3:$S3_ENDPOINT/$S3_BUCKET/"${quote(files.repository)} restore --verify --include "$path" --target ${target} -- ${quote(files.snapshot)}
mkdir -p "${target}$path"
echo "restored=$(find "${target}$path" -type f -printf . | wc -c)"
touch "${target}$path/${UNSERVED}" "${target}$path/${WHOLE}"
mv "${target}$path" ${restoredFolder(stamp)}
rm -rf ${target}`
  const program = `eval "$(cat)"; export AWS_ACCESS_KEY_ID="$S3_ACCESS_KEY_ID" AWS_SECRET_ACCESS_KEY="$S3_SECRET_ACCESS_KEY" AWS_DEFAULT_REGION="$S3_REGION"
${each(one)}`
  const more = `-i --network kgc_egress-net --volume ${ROOT}:/data/server:ro --volume ${ROOT}/${BACKUP_FOLDER}:/var/lib/backup`
  const command = script(
    `docker exec ${BACKUP_SERVICE} sh -c 'export -p' | grep -E '^export (S3|RESTIC)_' | ${inVolumes(program, more)}`,
  )
  await log.step(`Restore ${files.files} files beside`, async () =>
    assertAllRestored(await host.write(command, { timeout: LONGEST_SECONDS }), files.files),
  )
}

/** @param printed nothing in a dry run */
export function assertAllRestored(printed: string, recorded: number): void {
  const counts = [...printed.matchAll(/^restored=(\d+)$/gm)].map(([, count]) => Number(count))
  const restored = counts.reduce((sum, count) => sum + count, 0)
  if (counts.length > 0 && restored !== recorded)
    throw new Stop(`${restored} files came back instead of the ${recorded} that were backed up.`, [
      'Take another run: npx tsx scripts/restore.ts --list',
    ])
}

const exchangeIn = (from: string, to: string) => exchangeContent(from, to, `! -name '${HIDDEN}*'`)
const removeContainer = 'docker rm -f kgc-restore-files > /dev/null 2>&1 || true'
const exchangeFolders = (from: string, to: string) => `${removeContainer}\n${inVolumes(each(exchangeIn(from, to)))}`

/** The restored files take the place of those that serve, which are kept. */
export const exchangeFiles = (stamp: string): Exchange => ({
  what: 'files',
  services: FILE_PATHS.flatMap((path) => writersOf(databaseOf(path))),
  forward: exchangeFolders(restoredFolder(stamp), oldFolder(stamp)),
  back: exchangeFolders(oldFolder(stamp), restoredFolder(stamp)),
})

/** The files that a restore set aside take their place again; those that serve now are set aside in their turn. */
export const exchangeFilesBack = (old: string, stamp: string): Exchange => ({
  ...exchangeFiles(stamp),
  forward: exchangeFolders(oldFolder(old), oldFolder(stamp)),
  back: exchangeFolders(oldFolder(stamp), oldFolder(old)),
})

/**
 * Removes what was restored and never served, in the working folder; what served is kept as a copy. A half done exchange that nothing was written down
 * about, as `completeCutOff` needs it, is completed or, when not all that served was set aside, taken back.
 */
export const mendFolder = `rm -rf ${HIDDEN}partial
for from in ${HIDDEN}restore_*; do
  [ -d "$from" ] || continue
  to=${HIDDEN}old_\${from#${HIDDEN}restore_}
  if [ -e "$to/${WHOLE}" ]; then
    ${exchangeIn('"$from"', '"$to"')}
  else
    ${exchangeIn('"$to"', '"$from"')}
  fi
  [ ! -d "$from" ] || [ -e "$from/${UNSERVED}" ] || mv -T "$from" ${HIDDEN}copy_\${from#${HIDDEN}restore_}
  rm -rf "$from"
done`

export const removeFileLeftovers: Command = script(`${removeContainer}\n${inVolumes(each(mendFolder))}`)

/** @param name as `--status` shows it: files_old_TIME */
export const dropFiles = (name: string): Command => script(inVolumes(each(`rm -rf ${quote(`.${name}`)}`)))
