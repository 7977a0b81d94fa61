import { Stop } from '../errors.ts'
import { CommandFailed, type Host } from '../host.ts'
import { NGINX_CONF, PROXY, RELEASE_CONF, ROOT } from '../layout.ts'
import { type Command, quote, script, sh } from '../shell.ts'
import { type Active, releaseName, renderActive } from './color.ts'

/** nginx starts new workers within 0.1 s (measured, 30 reloads); more than this means it did not reload. */
const CONFIRM_SECONDS = 10
const REFUSED = 70
const UNCONFIRMED = 71
const NOT_BEGUN = 72

/** Runs in the proxy's container: prints the process ids of the workers that accept connections, or that are retiring. */
const WORKERS = `
workers() {
  for p in /proc/[0-9]*; do
    case "$(tr '\\0' ' ' 2>/dev/null < "$p/cmdline")" in
      'nginx: worker process is shutting down'*) [ "$1" = retiring ] && echo "\${p#/proc/}" ;;
      'nginx: worker process'*) [ "$1" = accepting ] && echo "\${p#/proc/}" ;;
    esac
  done
}
`

/**
 * Reloads nginx and returns only when every worker that had the old configuration has stopped accepting and three
 * fresh connections in a row were answered by the wanted release. Reading the file would prove nothing: the first
 * request after a reload returns still meets an old worker in 27 of 30 cases (measured).
 */
const reloadAndConfirm = (wanted: string) => `${WORKERS}
use() { rm -f /etc/nginx/conf.d/*.conf; cp "/tmp/$1"/*.conf /etc/nginx/conf.d/; }
# A certificate that is renewed reloads nginx, too: it must find the files that serve.
refuse() { use before; exit ${REFUSED}; }
rm -rf /tmp/rendered /tmp/before && mkdir /tmp/rendered && cp -r /etc/nginx/conf.d /tmp/before || exit ${REFUSED}
NGINX_ENVSUBST_OUTPUT_DIR=/tmp/rendered /docker-entrypoint.d/20-envsubst-on-templates.sh > /dev/null || exit ${REFUSED}
use rendered || refuse
nginx -t -q -c ${NGINX_CONF} || refuse
old=$(workers accepting)
nginx -c ${NGINX_CONF} -s reload || refuse
end=$(($(date +%s) + ${CONFIRM_SECONDS}))
right=0
while [ "$right" -lt 3 ]; do
  [ "$(date +%s)" -lt "$end" ] || exit ${UNCONFIRMED}
  now=" $(workers accepting | tr '\\n' ' ') "
  for p in $old; do case "$now" in *" $p "*) sleep 0.02; right=0; continue 2 ;; esac; done
  case "$(curl -s --max-time 2 http://127.0.0.1:8081/release)" in
    ${quote(wanted)}' '*) right=$((right + 1)) ;;
    *) right=0; sleep 0.02 ;;
  esac
done
`

/** Prints what the workers say they serve, then a line @@retiring and the workers that finish earlier requests. */
export const askProxy: Command = script(
  `docker exec ${PROXY} sh -c ${quote(`${WORKERS}
curl -s --max-time 3 http://127.0.0.1:8081/release
echo; echo @@retiring; workers retiring`)}`,
)

/** Runs a script in the proxy's container. */
const inProxy = (text: string) => sh`docker exec -i ${PROXY} sh -c ${text}`

/**
 * Makes a color serve: writes the active file by rename, reloads, waits for the workers' word. When nginx refuses the
 * file or does not take it, the file before comes back in the same breath.
 */
function switchCommand(active: Active | undefined): Command {
  return script(`
cd ${ROOT} &&
  printf %s ${quote(renderActive(active))} > ${RELEASE_CONF}.next &&
  sync ${RELEASE_CONF}.next &&
  cp -p ${RELEASE_CONF} ${RELEASE_CONF}.before &&
  mv ${RELEASE_CONF}.next ${RELEASE_CONF} || exit ${NOT_BEGUN}
code=0
${inProxy(reloadAndConfirm(releaseName(active))).shell} || code=$?
if [ $code -ne 0 ]; then
  mv ${RELEASE_CONF}.before ${RELEASE_CONF}
  # Fails, too, where it is another file that nginx refuses: then nginx goes on as it was.
  docker exec ${PROXY} nginx -c ${NGINX_CONF} -s reload || true
fi
exit $code
`)
}

/** Before the first deploy: gives nginx a file to start with, unless there is one. */
export const prepareActive: Command = script(`
mkdir -p ${ROOT}/state/nginx ${ROOT}/state/metrics
cd ${ROOT}
[ -e ${RELEASE_CONF} ] || printf %s ${quote(renderActive(undefined))} > ${RELEASE_CONF}.next
[ -e ${RELEASE_CONF} ] || mv ${RELEASE_CONF}.next ${RELEASE_CONF}
`)

/** Makes the active file name a release, and reloads nothing. */
export const nameActive = (active: Active | undefined): Command =>
  script(`
cd ${ROOT}
printf %s ${quote(renderActive(active))} > ${RELEASE_CONF}.next && mv ${RELEASE_CONF}.next ${RELEASE_CONF}`)

/** nginx was never told to switch; what served before still serves. */
export class NotSwitched extends Stop {}

/**
 * @throws NotSwitched when nginx refused the file; Stop when it was not seen to take it: the file before is back, and who
 * serves is to be made sure of
 */
export async function switchTo(host: Host, active: Active | undefined): Promise<void> {
  const target = active ? active.version : 'the maintenance page'
  try {
    await host.write(switchCommand(active), { timeout: 60 })
  } catch (error) {
    const { code, stderr } = error instanceof CommandFailed ? error.result : {}
    if (code === NOT_BEGUN) throw new NotSwitched(`The switch to ${target} could not begin.\n${stderr?.trim()}`)
    if (code === REFUSED)
      throw new NotSwitched(`nginx refused the switch to ${target}; it was put back.\n${stderr?.trim()}`, [
        'Mend the file on the server that nginx names, then run this again.',
      ])
    if (code === UNCONFIRMED) {
      throw new Stop(`nginx did not take the switch to ${target} within ${CONFIRM_SECONDS} s.`, [
        `On the server: docker logs --tail 20 ${PROXY}`,
      ])
    }
    throw error
  }
}

/**
 * Waits until no worker with an earlier configuration is left. Prints 'left' when some still are after the given
 * seconds: then websockets or requests that take longer hold them, as idle connections are closed 2 s after a reload
 * (keepalive_min_timeout).
 */
export const drainCommand = (maxSeconds: number): Command =>
  inProxy(`${WORKERS}
end=$(($(date +%s) + ${maxSeconds}))
while [ -n "$(workers retiring)" ]; do [ "$(date +%s)" -lt "$end" ] || { echo left; exit 0; }; sleep 0.1; done
`)
