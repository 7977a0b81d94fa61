import { parse } from 'dotenv'
import { EXIT, Stop } from '../errors.ts'
import { ROOT } from '../layout.ts'
import { putFile } from '../put-file.ts'
import { generateSecrets, redisAcl, SECRETS } from '../secrets.ts'
import { script, sh } from '../shell.ts'
import type { Step } from './step.ts'

/**
 * The stack's variables. What is there already stays, whatever it is: a secret that changed would shut its users out.
 * @param given the values that are not generated
 */
export function environment(given: Record<string, string | number>): Step {
  const fixed = Object.fromEntries(Object.entries(given).map(([name, value]) => [name, String(value)]))
  // Before anything is touched.
  for (const [name, value] of Object.entries(fixed)) envLine(name, value)
  const names = ['DEPLOY_GID', ...new Set([...Object.keys(fixed), ...SECRETS.map(({ name }) => name)])]
  return {
    title: 'Variables and secrets of the stack',
    check: `
for name in ${names.join(' ')}; do grep -qs "^$name=." ${ROOT}/.env || echo "$name is not set in .env"; done
[ "$(stat -c '%a %U' ${ROOT}/.env 2> /dev/null)" = '600 deploy' ] || echo '.env is not there as 600 deploy'`,
    async apply(host) {
      const text = Object.entries(generateSecrets(fixed))
        .concat(Object.entries(fixed).filter(([name]) => !SECRETS.some((secret) => secret.name === name)))
        .map(([name, value]) => envLine(name, value))
        .join('')
      await host.write(
        script(`
set -e
umask 077
cd ${ROOT}
touch .env
grep -v '^[A-Z0-9_]*=$' .env > .env.next || true
{ cat; echo "DEPLOY_GID=$(id -g deploy)"; } | while IFS= read -r line; do
  grep -q "^\${line%%=*}=" .env.next || printf '%s\\n' "$line" >> .env.next
done
chown deploy: .env.next
mv .env.next .env`),
        { input: text },
      )
    },
  }
}

/**
 * A line of an env file that Compose and dotenv read alike: between single quotes neither replaces anything.
 * @throws Stop (exit 2) for what cannot stand there
 */
export function envLine(name: string, value: string): string {
  if (/['\r\n]/.test(value))
    throw new Stop(`${name} has a single quote or a line break in it, which no env file can carry.`, [], EXIT.usage)
  return /^[\w@.:/+,=-]*$/.test(value) ? `${name}=${value}\n` : `${name}='${value}'\n`
}

const REDIS_USERS = ['KGC', 'TWENTY', 'CHATWOOT', 'BACKUP', 'EXPORTER']
/** Redis' users follow from the secrets. A password that was added beside another, for a rotation, stays. */
export const redisUsers: Step = {
  title: "Redis' users",
  check: `
for redis in redis redis-queue; do
  file=${ROOT}/secrets/$redis/users.acl
  [ "$(stat -c '%a %U' $file 2> /dev/null)" = '640 deploy' ] || echo "$file is not there as 640 deploy"
  for name in ${REDIS_USERS.join(' ')}; do
    sum=$(printf %s "$(sed -n "s/^\${name}_REDIS_PASSWORD=//p" ${ROOT}/.env 2> /dev/null)" | sha256sum | cut -d' ' -f1)
    grep -qs "#$sum" $file || echo "$redis does not know the password of $name"
  done
done`,
  async apply(host, dryRun) {
    const content = redisAcl(dryRun ? {} : parse(await host.read(sh`cat ${`${ROOT}/.env`}`)))
    for (const redis of ['redis', 'redis-queue'])
      await putFile(host, `${ROOT}/secrets/${redis}/users.acl`, content, { owner: 'deploy', mode: '640' })
  },
}
