import { compose } from '../compose.ts'
import { PITR, POSTGRES, ROOT } from '../layout.ts'
import { type Command, script, sh } from '../shell.ts'
import { FIRST_VOLUME, PITR_RECORDS, SWAP } from './cluster.ts'

const MAINTENANCE = 'state/nginx/maintenance'
const START_SECONDS = 300
/** What of the stack does not write. */
const STAY = `${POSTGRES}|kgc-postgres-exporter-1|${PITR}`

/** Its exit code when the new cluster did not start and the old one serves again. */
export const PUT_BACK = 4

/** The log of the last swap, since the one who began it may not hear its end. */
export const SWAP_LOG = 'state/pitr.log'

/**
 * Lets the cluster of another volume serve: stops what writes, points POSTGRES_VOLUME at it, starts everything again. It
 * is one command, so that it ends also when the run that began it dies; when the server dies in the middle, the same
 * command completes it. The volume that served stays as it is.
 * @param target what the record says of it
 */
export function swapTo(volume: string, target: string): Command {
  const start = compose(sh`up -d --no-deps --force-recreate --wait --wait-timeout ${START_SECONDS} postgres`).shell
  const startKeeper = compose(sh`up -d --no-deps --force-recreate pitr`).shell
  const work = script(`
set -eu
serving() { sed -n 's/^POSTGRES_VOLUME=//p' .env | tail -n 1; }
serve() {
  umask 077
  # On a full disk the copy would be a part.
  { grep -v '^POSTGRES_VOLUME=' .env; echo "POSTGRES_VOLUME=$1"; } > .env.next && [ "$(wc -l < .env.next)" -ge "$(wc -l < .env)" ] &&
    mv .env.next .env || return 1
  docker stop ${POSTGRES} ${PITR} > /dev/null 2>&1 || true
  (${start})
}
if [ ! -e ${SWAP} ]; then
  {
    echo "to=$1"
    was=$(serving)
    echo "was=\${was:-${FIRST_VOLUME}}"
    echo "since=$(date +%s)"
    [ -e ${MAINTENANCE} ] || echo closed=1
    docker ps --filter network=kgc_database-net --format 'app={{.Names}}' | grep -vxE 'app=(${STAY})' || true
  } > ${SWAP}.next
  mv ${SWAP}.next ${SWAP}
fi
value() { sed -n "s/^$1=//p" ${SWAP}; }
note() { echo "after $(($(date +%s) - $(value since))) s: $1"; }
touch ${MAINTENANCE}
[ -z "$(value app)" ] || docker stop $(value app) > /dev/null
note 'nothing writes any more'
code=0
if serve "$(value to)"; then
  printf '{"at":"%s","volume":"%s","was":"%s","target":"%s"}\\n' "$(date -u +%FT%TZ)" "$(value to)" "$(value was)" "$2" >> ${PITR_RECORDS}
else
  echo "The new cluster did not start:"; docker logs --tail 20 ${POSTGRES} 2>&1 || true
  serve "$(value was)"
  code=${PUT_BACK}
fi
note "$(serving) serves"
# All at once: one after another they take seconds each.
for app in $(value app); do docker start "$app" > /dev/null & done
if grep -qx PITR=on .env; then
  (${startKeeper}) || echo '${PITR} did not start'
fi
wait
if [ -n "$(value app)" ]; then
  for try in $(seq ${START_SECONDS}); do
    docker inspect -f '{{if .State.Health}}{{.State.Health.Status}}{{end}}' $(value app) | grep -q starting || break
    sleep 1
  done
fi
[ -z "$(value closed)" ] || rm -f ${MAINTENANCE}
echo "closed for $(($(date +%s) - $(value since))) s"
rm ${SWAP}
exit $code`)
  return sh`cd ${ROOT} && { sh -c ${work.shell} swap ${volume} ${target} > ${SWAP_LOG} 2>&1; code=$?; cat ${SWAP_LOG}; exit $code; }`
}
