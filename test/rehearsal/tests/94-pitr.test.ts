import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openStore } from '../../../lib/backup/object-store.ts'
import { compose } from '../../../lib/compose.ts'
import { ROOT } from '../../../lib/layout.ts'
import { PUT_BACK, swapTo } from '../../../lib/pitr/swap.ts'
import { script, sh } from '../../../lib/shell.ts'
import { startBackup } from '../backup.ts'
import { docker } from '../engine.ts'
import {
  inContainer,
  rehearsal,
  runScript,
  said,
  servedVersion,
  serverRead,
  startScript,
  onServer as withHost,
} from '../harness.ts'
import { SERVER } from '../names.ts'
import { s3Settings } from '../s3.ts'
import { until } from '../server.ts'

const test = suite('point in time recovery')
const soak = process.env.SOAK === '1'

/** archive_timeout, and the time until a piece is in S3 on a busy machine. */
const LOSS_SECONDS = 60 + 15
const CONFIRM = ['--confirm', SERVER.address]

const sql = (text: string, database = 'kgc') =>
  serverRead(sh`docker exec kgc-postgres-1 psql -U postgres -XAtq -v ON_ERROR_STOP=1 -d ${database} -c ${text}`)
const restore = (...args: string[]) => runScript('restore', [...args, ...CONFIRM])
const upNow = (service: string) => compose(sh`up -d --no-deps ${service}`)
/** As the user who deploys: the registry knows it. */
const onServer = (text: string) => serverRead(script(`cd ${ROOT}\n${text}`), 'deploy')
const keeper = (what: 'due' | 'gap' | 'info') =>
  serverRead(sh`docker exec -u postgres kgc-pitr-1 /opt/pitr/keep.sh ${what}`)
const serving = () => onServer(`sed -n 's/^POSTGRES_VOLUME=//p' .env | tail -n 1`)
const metric = async (name: string) => {
  let value: string | undefined
  // The exporter's first answer after a restart of postgres may be without it: its connection was that of before.
  await until(async () => {
    const { stdout } = await inContainer('postgres-exporter', sh`wget -q -O - http://127.0.0.1:9187/metrics`)
    value = new RegExp(`^${name}\\{.*\\} (\\S+)$`, 'm').exec(stdout)?.[1]
    return value !== undefined
  }, `the metric ${name}`)
  return Number(value)
}
const figures: string[] = []
const backedUp = () =>
  until(
    async () => (await onServer('docker exec -u postgres kgc-pitr-1 /opt/pitr/keep.sh due || echo not yet')) === '',
    'a backup of the line that serves',
    240,
  )

async function switchPitr(on: boolean): Promise<void> {
  await onServer(`sed -i '/^PITR=/d' .env\n${on ? 'echo PITR=on >> .env' : 'docker rm -f kgc-pitr-1 > /dev/null 2>&1 || true'}
(${compose(sh`up -d --no-deps --wait --wait-timeout 60 postgres`).shell})
${on ? upNow('pitr').shell : ''}`)
}

test.before(async () => {
  await rehearsal()
  await switchPitr(false)
})
test.after(async () => {
  await switchPitr(false)
  console.log(figures.map((line) => `  ${line}`).join('\n'))
})

test('off by default: the plain image, nothing archived, no way out', async () => {
  const found = await onServer(
    `docker inspect -f '{{.Config.Image}} {{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}' kgc-postgres-1`,
  )
  assert.is(found.trim(), 'pgvector/pgvector:0.8.6-pg15-bookworm kgc_database-net')
  assert.is(await sql("SELECT current_setting('archive_mode') || current_setting('archive_timeout')"), 'off0')
  assert.not.match(await serverRead(compose(sh`config --services`)), /^(pitr|postgres-restore)$/m)
  assert.is(await metric('pg_settings_archive_timeout_seconds'), 0)
  const run = await restore('--time', 'newest')
  assert.is(run.code, 1, said(run))
  assert.match(run.stderr, /Point in time recovery is off/)
})

test('on by one variable and a deploy of the stack: a backup is made by itself, and the log follows', async () => {
  await onServer('echo PITR=on >> .env')
  const run = await runScript('deploy', [await servedVersion(), '--stack'])
  assert.is(run.code, 0, said(run))
  assert.not.match(run.stderr, /not all came up/)
  assert.is(await metric('pg_settings_archive_timeout_seconds'), 60)
  await backedUp()
  assert.is(await keeper('gap'), '')
  assert.match(
    await serverRead(sh`docker exec -u postgres kgc-pitr-1 pgbackrest info`),
    /status: ok[\s\S]*aes-256-cbc[\s\S]*full backup/,
  )
  await until(
    async () => /kgc_pitr_missing_pieces 0/.test(await onServer('cat state/pitr/metrics/kgc_pitr.prom')),
    'metrics',
  )
})

test('the nightly dump goes on as before', async () => {
  const { code, stdout, stderr } = await startBackup()
  assert.is(code, 0, `${stdout}${stderr}`)
})

// A minute and a half: pgBackRest reads file by file.
const withSoak = soak ? test : () => {}
withSoak('what is in S3 is read whole, and a byte that changed is noticed', async () => {
  const verify = () => serverRead(script('docker exec -u postgres kgc-pitr-1 /opt/pitr/keep.sh verify || true'))
  const result = async () => /verify_ok (\d)/.exec(await onServer('cat state/pitr/metrics/kgc_pitr_verify.prom'))?.[1]
  const open = await openStore(s3Settings())
  const bundle = (await open.list('kgc/pitr/backup/kgc/')).find(({ key, size }) => /bundle/.test(key) && size > 10_000)
  assert.ok(bundle)
  const whole: Buffer[] = []
  for await (const chunk of open.get(bundle.key)) whole.push(Buffer.from(chunk))
  const bytes = Buffer.concat(whole)
  const put = (content: Buffer) => open.put(bundle.key, Readable.from([content]))
  const damaged = Buffer.from(bytes)
  damaged[bytes.length - 100] = (damaged[bytes.length - 100] ?? 0) ^ 1
  try {
    await put(damaged)
    assert.match(await verify(), /DAMAGED[\s\S]*status: error/)
    assert.is(await result(), '0')
  } finally {
    await put(bytes)
    open.close()
  }
  assert.is(await verify(), '')
  assert.is(await result(), '1')
})

/** Changes what pgBackRest in the postgres container reads. */
const conf = (edit: string) => {
  const file = '/etc/pgbackrest/pgbackrest.conf'
  const change = `sed '${edit}' ${file} > /tmp/conf && cat /tmp/conf > ${file}; rm /tmp/conf`
  return serverRead(sh`docker exec kgc-postgres-1 sh -c ${change}`)
}
const nextPiece = () => sql('SELECT txid_current(), pg_switch_wal()')
const counted = async (name: string, work: () => Promise<unknown>) => {
  const before = await metric(name)
  await work()
  await until(async () => (await metric(name)) > before, `${name} above ${before}`, 120)
}

// The archiver rests for a minute after three failures.
withSoak('S3 refuses: counted for the alert, nobody is thrown out, and nothing is lost', async () => {
  const started = await sql('SELECT pg_postmaster_start_time()')
  const session = serverRead(
    sh`docker exec kgc-postgres-1 psql -U postgres -XAtqc ${"SELECT pg_sleep(10), 'still here'"}`,
  )
  await counted('pg_stat_archiver_failed_count', async () => {
    await conf('s/^repo1-s3-key=/&WRONG/')
    await nextPiece()
  }).finally(() => conf('s/^repo1-s3-key=WRONG/repo1-s3-key=/'))
  assert.match(await session, /still here/)
  await counted('pg_stat_archiver_archived_count', async () => {
    // Wakes the archiver.
    await nextPiece()
  })
  assert.is(await sql('SELECT pg_postmaster_start_time()'), started)
  assert.is(await keeper('gap'), '')
})

test('too much of the log waited and was given up: the gap is seen, and a new backup bridges it', async () => {
  // Postgres counts what is given up as archived.
  await counted('pg_stat_archiver_archived_count', async () => {
    await conf('s/^repo1-s3-key=/&WRONG/; s/^archive-push-queue-max=.*/archive-push-queue-max=1MiB/')
    await nextPiece()
  }).finally(() =>
    conf('s/^repo1-s3-key=WRONG/repo1-s3-key=/; s/^archive-push-queue-max=.*/archive-push-queue-max=1GiB/'),
  )
  assert.match(await keeper('gap'), /^[0-9A-F]{24}/)
  const backup = async () => JSON.parse(await keeper('info'))[0].backup.at(-1).label as string
  const before = await backup()
  await serverRead(sh`docker restart kgc-pitr-1`)
  await until(async () => (await backup()) !== before, 'a new backup', 120)
  assert.is(await keeper('gap'), '')
})

test('bad input is refused before anything is touched', async () => {
  const before = await onServer('docker volume ls -q; cat .env | cksum; docker ps -q')
  for (const [args, code, message] of [
    [['--time', 'yesterday'], 2, /is not a time/],
    [['--time', '2099-01-01 10:00'], 2, /in the future/],
    [['--undo', '--time', '10:00'], 2, /Say one thing to do/],
    [['--time', '10:00', '--db', 'kgc'], 2, /--db does not go with --time/],
    [['--time', '2020-01-01 10:00'], 1, /earliest moment that can be restored/],
  ] as const) {
    const run = await restore(...args)
    assert.is(run.code, code, said(run))
    assert.match(run.stderr, message)
  }
  assert.is(await onServer('docker volume ls -q; cat .env | cksum; docker ps -q'), before)
})

test('back to the moment before a DROP TABLE, also when the first try died in the middle', async () => {
  await sql('DROP TABLE IF EXISTS invoices; CREATE TABLE invoices AS SELECT g AS id FROM generate_series(1, 5000) g')
  await sleep(1500)
  const moment = new Date().toISOString()
  await sleep(1500)
  await sql('DROP TABLE invoices')

  const dead = startScript('restore', ['--time', moment, ...CONFIRM])
  const label = `docker volume ls -q --filter label=kgc.pitr=${moment}`
  await until(async () => (await onServer(label)) !== '', 'the download to begin', 60)
  dead.child.kill('SIGKILL')
  const torn = await onServer(label)
  assert.is(await sql("SELECT to_regclass('invoices') IS NULL"), 't')

  const run = await restore('--time', moment, '--wait', '60')
  assert.is(run.code, 0, said(run))
  assert.match(run.stdout, /kgc: public\.invoices with 5000 rows comes back/)
  assert.is(await sql('SELECT count(*) FROM invoices'), '5000')
  assert.not(
    (await onServer('docker volume ls -q')).split('\n').includes(torn),
    'the leftover of the dead run is still there',
  )
  figures.push(
    `restored to a moment, and the first backup of it, in ${run.seconds.toFixed(0)} s, ${/closed for \d+ s/.exec(run.stdout)?.[0]}`,
  )
  await backedUp()
})

test('undone, what was replaced serves again', async () => {
  const restored = await serving()
  const refused = await runScript('restore', ['--undo', '--confirm', 'kgc'])
  assert.is(refused.code, 2, said(refused))
  assert.match(refused.stderr, /the last restore is that of the whole cluster[\s\S]*--confirm kgc is not/)
  assert.is(await serving(), restored)
  const run = await restore('--undo')
  assert.is(run.code, 0, said(run))
  const status = await restore('--status')
  assert.match(status.stdout, new RegExp(`^${restored} .*the whole cluster until it was replaced`, 'm'))
  assert.is(await sql("SELECT to_regclass('invoices') IS NULL"), 't')
  assert.is.not(await serving(), restored)
  await backedUp()
})

withSoak('undone also while kgc-pitr-1 is down, as the old cluster is on the server', async () => {
  const before = await serving()
  await onServer('docker stop kgc-pitr-1 > /dev/null')
  const run = await restore('--undo')
  assert.is(run.code, 0, said(run))
  assert.match(run.stderr, /kgc-pitr-1 does not run.*not tried beside what serves/)
  assert.is.not(await serving(), before)
  await backedUp()
  const back = await restore('--undo')
  assert.is(back.code, 0, said(back))
  assert.is(await serving(), before)
  await backedUp()
})

const NO_CLUSTERS = {
  'that cannot be mounted': ['kgc_postgres-data-no/name', 'true'],
  ...(soak
    ? {
        'that does not start': [
          'kgc_postgres-data-20200101T000000',
          `docker volume create --label com.docker.compose.project=kgc --label com.docker.compose.volume=postgres-data kgc_postgres-data-20200101T000000 > /dev/null
docker run --rm --network none -v kgc_postgres-data-20200101T000000:/data --entrypoint sh "$(docker inspect -f '{{.Image}}' kgc-postgres-1)" -c 'echo 99 > /data/PG_VERSION; chown -R postgres: /data'`,
        ],
      }
    : {}),
}

for (const [what, [volume = '', make = '']] of Object.entries(NO_CLUSTERS))
  test(`a cluster ${what} does not come to serve: the one before serves again, and the site is open`, async () => {
    await onServer(make)
    const state = () =>
      onServer(
        'sed -n s/^POSTGRES_VOLUME=//p .env; cat state/pitr.jsonl; ls state/pitr.swap state/nginx/maintenance 2> /dev/null || true',
      )
    const [before, rows] = [await state(), await sql('SELECT count(*) FROM work')]
    const { code, stdout } = await withHost((host) => host.probe(swapTo(volume, 'a test'), { timeout: 900 }), 'deploy')
    assert.is(code, PUT_BACK, stdout)
    assert.match(stdout, /The new cluster did not start/)
    assert.is(await state(), before)
    assert.is(await sql('SELECT count(*) FROM work'), rows)
    await until(async () => (await runScript('smoke-test')).code === 0, 'the site to be whole', 120)
    await onServer(`docker volume rm ${volume} > /dev/null 2>&1 || true`)
    await backedUp()
  })

const isSwapping = async () => (await onServer('test -e state/pitr.swap && echo yes || true')) === 'yes'

withSoak('the server dies in the swap: the same command completes it', async () => {
  const rows = await sql('SELECT count(*) FROM work')
  const before = await serving()
  const run = startScript('restore', ['--time', 'newest', ...CONFIRM])
  await until(isSwapping, 'the swap', 240)
  await docker(sh`restart -t 0 ${SERVER.container}`, 120)
  assert.is.not((await run.ended).code, 0)
  await until(() => isSwapping().catch(() => false), 'the server', 120)

  const next = await restore('--time', 'newest', '--wait', '120')
  assert.is(next.code, 1, said(next))
  assert.match(next.stderr, /A restore that was cut off is complete now: \S+ serves/)
  assert.is.not(await serving(), before)
  assert.is(await sql('SELECT count(*) FROM work'), rows)
  assert.is(await onServer('ls state/pitr.swap state/nginx/maintenance 2> /dev/null || true'), '')
  await until(async () => (await runScript('smoke-test')).code === 0, 'the site to be whole', 120)
  await backedUp()
})

test('one table is copied out of the past; then the server is killed and its volume lost: at most a minute is gone', async () => {
  await sql('CREATE TABLE IF NOT EXISTS ticks (at timestamptz DEFAULT clock_timestamp()); TRUNCATE ticks')
  await sql(
    'DROP TABLE IF EXISTS copied, invoices; CREATE TABLE copied AS SELECT g AS id FROM generate_series(1, 300) g',
  )
  await sleep(1500)
  const moment = new Date().toISOString()
  await sleep(1500)
  await sql('DROP TABLE copied')
  const looked = await restore('--time', moment, '--keep-side')
  assert.is(looked.code, 0, said(looked))
  await onServer(
    'docker exec kgc-postgres-restore-1 pg_dump -U postgres -t copied kgc | docker exec -i kgc-postgres-1 psql -U postgres -q -1 kgc',
  )
  assert.is(await sql('SELECT count(*) FROM copied'), '300')

  // Up to the very end, and longer than what may be lost: with a shorter time, losing all of it would be within the bound.
  const seconds = soak ? 100 : LOSS_SECONDS + 5
  const tick = sh`docker exec kgc-postgres-1 psql -U postgres -qd kgc -c ${'INSERT INTO ticks DEFAULT VALUES'}`
  await serverRead(
    script(`end=$(($(date +%s) + ${seconds})); while [ "$(date +%s)" -lt $end ]; do ${tick.shell}; sleep 0.5; done`),
  )
  const [first, last] = (
    await sql("SELECT extract(epoch FROM min(at)) || ' ' || extract(epoch FROM max(at)) FROM ticks")
  )
    .split(' ')
    .map(Number) as [number, number]
  const lost = await serving()
  await onServer(`docker kill -s KILL kgc-postgres-1 > /dev/null
docker rm -f kgc-postgres-1 kgc-pitr-1 > /dev/null
docker volume rm ${lost || 'kgc_postgres-data'} > /dev/null
(${compose(sh`up -d --no-deps --wait --wait-timeout 60 postgres`).shell})
${upNow('pitr').shell}`)
  assert.is(await sql("SELECT to_regclass('ticks') IS NULL"), 't')
  await until(
    async () => (await serverRead(sh`docker inspect -f ${'{{.State.Running}}'} kgc-pitr-1`)) === 'true',
    'kgc-pitr-1',
  )

  const began = Date.now()
  const run = startScript('restore', ['--time', 'newest', ...CONFIRM])
  await until(async () => (await onServer('ls state')).includes('pitr.swap'), 'the swap', 180)
  run.child.kill('SIGKILL')
  await until(async () => !(await onServer('ls state')).includes('pitr.swap'), 'the swap to end by itself', 180)
  figures.push(`cluster lost and restored from S3 in ${((Date.now() - began) / 1000).toFixed(0)} s`)
  const kept = Number(await sql(`SELECT coalesce(extract(epoch FROM max(at)), ${first}) FROM ticks`))
  figures.push(`${(last - kept).toFixed(1)} s of commits lost with the server`)
  assert.ok(last - kept <= LOSS_SECONDS, `${last - kept} s were lost`)
  const smoke = await runScript('smoke-test')
  assert.is(smoke.code, 0, said(smoke))
})

test.run()
