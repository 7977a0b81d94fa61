import { readdirSync, readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parse } from 'yaml'
import { createLog } from '../../../lib/log.ts'
import { sh } from '../../../lib/shell.ts'
import { buildImages } from '../build.ts'
import { local } from '../engine.ts'
import { IMAGES, PROJECT_DIR } from '../names.ts'

const test = suite('the alert rules, with promtool')

const [RULES, TESTS] = [`${PROJECT_DIR}/monitoring/prometheus/rules`, `${PROJECT_DIR}/test/rehearsal/alerts`]
const read = (folder: string) => readdirSync(folder).map((name) => parse(readFileSync(`${folder}/${name}`, 'utf8')))

type Rules = { groups: { rules: { alert: string }[] }[] }
type Tests = { tests: { alert_rule_test: { alertname: string; exp_alerts?: unknown[] }[] }[] }
const alerts = (read(RULES) as Rules[]).flatMap(({ groups }) => groups.flatMap(({ rules }) => rules))
const expected = (read(TESTS) as Tests[]).flatMap(({ tests }) => tests.flatMap((one) => one.alert_rule_test))

test.before(() => buildImages(createLog()))

for (const { alert } of alerts) {
  test(`${alert} is seen to fire, and not to fire`, () => {
    const outcomes = expected.filter(({ alertname }) => alertname === alert).map(({ exp_alerts = [] }) => exp_alerts)
    assert.ok(
      outcomes.some((fired) => fired.length > 0),
      'nothing makes it fire',
    )
    assert.ok(
      outcomes.some((fired) => fired.length === 0),
      'nothing leaves it silent',
    )
  })
}

for (const name of readdirSync(TESTS)) {
  test(`those of ${name} fire when they should, and only then`, async () => {
    const volumes = sh`-v ${`${RULES}:/rules:ro`} -v ${`${TESTS}:/tests:ro`}`
    const { code, stdout, stderr } = await local.probe(
      sh`docker run --rm --network none ${volumes} --entrypoint promtool ${`${IMAGES}/hub/prom/prometheus:v3.15.0`} test rules ${`/tests/${name}`}`,
    )
    assert.is(code, 0, stdout + stderr)
  })
}

test.run()
