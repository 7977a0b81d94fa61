import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { PROJECT_DIR } from './rehearsal/names.ts'

/**
 * Runs the test files of the given suites, each in a process of its own, and adds up what uvu counted:
 * `tsx test/run.ts unit rehearsal [part of a file name]`. A file that dies counts as a failure.
 */
const FOLDERS: Record<string, string> = {
  unit: 'test/unit',
  rehearsal: 'test/rehearsal/tests',
  machine: 'test/rehearsal/machine',
}
const LONGEST_FILE_MS = 90 * 60_000
/** From uvu's last word to the end of the process. What keeps it longer was left running: that is a failure, too. */
const LEFTOVER_MS = 60_000

const args = process.argv.slice(2)
const only = args.find((arg) => !(arg in FOLDERS)) ?? ''
const files = args
  .flatMap((arg) => FOLDERS[arg] ?? [])
  .flatMap((folder) =>
    readdirSync(join(PROJECT_DIR, folder))
      .filter((name) => name.endsWith('.test.ts'))
      .sort()
      .map((name) => join(folder, name)),
  )
  .filter((file) => file.includes(only))

const sum = { passed: 0, failed: 0, skipped: 0 }
const failures: string[] = []

/** Those of a server take turns on it; the others need nothing but this machine. */
const isShared = (file: string) => !file.startsWith(`${FOLDERS.unit}/`)
const unit = files.filter((file) => !isShared(file))
const lane = async () => {
  for (let file = unit.shift(); file !== undefined; file = unit.shift()) await runAndCount(file)
}
await Promise.all(cpus().map(lane))
for (const file of files.filter(isShared)) await runAndCount(file)

if (failures.length > 0) console.log(`\nFailed:\n${failures.map((name) => `  ${name}`).join('\n')}`)
console.log(`\n${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`)
process.exitCode = sum.failed === 0 && sum.passed > 0 ? 0 : 1

async function runAndCount(file: string): Promise<void> {
  const started = Date.now()
  const { code, output } = await run(file)
  if (!isShared(file)) process.stdout.write(`\n── ${file}\n${output}`)
  console.log(`   ${((Date.now() - started) / 1000).toFixed(1)} s`)
  const count = (name: string) => Number(new RegExp(`^\\s*${name}:\\s+(\\d+)`, 'm').exec(output)?.[1] ?? Number.NaN)
  const [total, passed, skipped] = [count('Total'), count('Passed'), count('Skipped')]
  if (Number.isNaN(total) || total === 0) {
    console.log(`✘ ${file} ended with exit code ${code} before its tests were counted`)
    sum.failed += 1
    failures.push(file)
    return
  }
  if (code === null) failures.push(`${file} did not end by itself`)
  failures.push(...[...output.matchAll(/^ *FAIL +(.*)$/gm)].map(([, name]) => `${file}: ${name}`))
  sum.passed += passed
  sum.skipped += skipped
  sum.failed += Math.max(total - passed - skipped, code === 0 ? 0 : 1)
}

function run(file: string): Promise<{ code: number | null; output: string }> {
  if (isShared(file)) console.log(`\n── ${file}`)
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['--import', 'tsx', file], {
      cwd: PROJECT_DIR,
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: LONGEST_FILE_MS,
      env: { ...process.env, FORCE_COLOR: '0' },
    })
    let output = ''
    let leftover: NodeJS.Timeout | undefined
    child.stdout.on('data', (chunk) => {
      output += chunk
      if (isShared(file)) process.stdout.write(chunk)
      if (/^ +Duration:/m.test(output)) leftover ??= setTimeout(() => child.kill('SIGKILL'), LEFTOVER_MS)
    })
    child.on('close', (code) => {
      clearTimeout(leftover)
      if (code === null) console.log(`✘ ${file} did not end by itself`)
      resolve({ code, output })
    })
  })
}
