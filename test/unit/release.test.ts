import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  migrationsSince,
  parseRecords,
  parseVersion,
  type ReleaseRecord,
  releases,
  rollbackTarget,
} from '../../lib/release/release.ts'
import { imagesToRemove } from '../../lib/release/retention.ts'

const test = suite('the record of releases')

let clock = 0
const imagesOf = (version: string) => ({ backend: `r/backend@${version}`, frontend: `r/frontend@${version}` })
const run = (version: string, outcome: ReleaseRecord['outcome'], more: Partial<ReleaseRecord> = {}): ReleaseRecord => ({
  id: String(clock),
  action: 'deploy',
  version,
  images: imagesOf(version),
  commit: 'abc',
  actor: 'kovacs',
  at: new Date(1e12 + clock++ * 1000).toISOString(),
  outcome,
  ...more,
})
const states = (records: ReleaseRecord[]) =>
  Object.fromEntries(releases(records).map(({ version, state }) => [version, state]))

test('joins the lines of a run, and leaves out a line torn by a crash', () => {
  const started = run('v1', 'started')
  const lines = `\n${JSON.stringify(started)}\n{"id":"torn","ver\n${JSON.stringify({ id: started.id, outcome: 'good', seconds: 4 })}\n`
  const records = parseRecords(lines)
  assert.is(records.length, 1)
  assert.is(records[0]?.outcome, 'good')
  assert.is(records[0]?.version, 'v1')
})

test('calls a run that never ended interrupted', () => {
  assert.equal(states([run('v1', 'started')]), { v1: 'interrupted' })
})

test('remembers that a release served well, whatever becomes of a later try of it', () => {
  assert.equal(states([run('v1', 'good'), run('v1', 'failed')]), { v1: 'good' })
  assert.equal(states([run('v1', 'good'), run('v1', 'started')]), { v1: 'good' })
  assert.equal(states([run('v1', 'good'), run('v1', 'bad')]), { v1: 'good' })
})

test('remembers it of a release that was left by a rollback, too', () => {
  const left = [run('v1', 'good'), run('v2', 'good'), run('v1', 'good', { action: 'rollback', from: 'v2' })]
  assert.equal(states(left), { v1: 'good', v2: 'left' })
  assert.equal(states([...left, run('v2', 'started', { action: 'rollback', from: 'v1' })]), { v1: 'good', v2: 'left' })
})

test('goes back to the last good one, never to the one that was just left, nor to a bad one', () => {
  const records = [run('v1', 'good'), run('v2', 'good'), run('v3', 'bad')]
  assert.is(rollbackTarget(releases(records), 'v2', undefined, false).version, 'v1')
  records.push(run('v1', 'good', { action: 'rollback', from: 'v2' }))
  assert.throws(() => rollbackTarget(releases(records), 'v1', undefined, false), /nothing to go back to/)
})

test('refuses a bad release without force, one that serves, and one that never was', () => {
  const all = releases([run('v1', 'good'), run('v2', 'bad')])
  assert.throws(() => rollbackTarget(all, 'v1', 'v2', false), /known as bad/)
  assert.is(rollbackTarget(all, 'v1', 'v2', true).version, 'v2')
  assert.throws(() => rollbackTarget(all, 'v1', 'v1', true), /serves already/)
  assert.throws(() => rollbackTarget(all, 'v1', 'v9', true), /never deployed/)
})

test('knows which migrations a rollback would go back past', () => {
  const all = releases([run('v1', 'good'), run('v2', 'good', { migration: 'npm run migrate' }), run('v3', 'good')])
  const target = all.find(({ version }) => version === 'v1')
  assert.equal(target && migrationsSince(all, target).map(({ version }) => version), ['v2'])
})

test('does not ask again about a migration with which the target has served since', () => {
  const all = releases([
    run('v1', 'good'),
    run('v2', 'good', { migration: 'npm run migrate' }),
    run('v1', 'good'),
    run('v2', 'good'),
  ])
  const target = all.find(({ version }) => version === 'v1')
  assert.equal(target && migrationsSince(all, target), [])
})

test('does not forget the migration of a release when another try of it fails', () => {
  const all = releases([
    run('v1', 'good'),
    run('v2', 'good'),
    run('v2', 'bad', { migration: 'npm run migrate', migrated: true }),
  ])
  const target = all.find(({ version }) => version === 'v1')
  assert.equal(target && migrationsSince(all, target).map(({ version }) => version), ['v2'])
})

test('takes v123 for a version and nothing else', () => {
  assert.is(parseVersion('v123'), 'v123')
  for (const text of ['latest', '123', 'v', 'v1; rm -rf /', 'v1\n', 'V1', ''])
    assert.throws(() => parseVersion(text), /not a version/, text)
})

test('keeps the images of the last good releases and of both colors, and removes the others by name', () => {
  const records = ['v1', 'v2', 'v3', 'v4'].map((version) => run(version, 'good'))
  records.push(run('v5', 'bad'))
  const onServer = ['v1', 'v2', 'v3', 'v4', 'v5'].flatMap((version) => Object.values(imagesOf(version)))
  assert.equal(imagesToRemove(onServer, records, 2, Object.values(imagesOf('v1'))), [
    ...Object.values(imagesOf('v2')),
    ...Object.values(imagesOf('v5')),
  ])
})

test.run()
