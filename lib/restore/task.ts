import { EXIT, Stop } from '../errors.ts'

/** What each of the things that one can ask for goes with. */
const GOES_WITH = {
  list: [],
  status: [],
  drop: [],
  undo: ['db', 'files', 'queue', 'grafana'],
  time: ['keep-side'],
  'to-blank': ['run', 'before', 'to'],
  backup: ['db', 'files', 'all', 'run', 'before', 'keep-side', 'other-server'],
  part: ['queue', 'grafana', 'run', 'before'],
} as const

const WORDS = { backup: 'a restore of databases or files', part: 'a restore of the queue or Grafana' }

export type Task = keyof typeof GOES_WITH
type Choice = (typeof GOES_WITH)[Task][number]
const CHOICES: Choice[] = [...new Set(Object.values(GOES_WITH).flatMap((names): Choice[] => [...names]))]
export type RestoreFlags = Partial<Record<Exclude<Task, 'backup' | 'part'> | Choice, boolean | string | undefined>>

/**
 * The one thing that was asked for. `backup` is a restore of databases and files, `part` of what is restored by itself.
 * @throws Stop (exit 2) when it is none or several, or when flags exclude each other
 */
export function taskOf(flags: RestoreFlags): Task {
  const isGiven = (name: keyof RestoreFlags) => flags[name] !== undefined && flags[name] !== false
  const named = (Object.keys(GOES_WITH) as Task[]).filter((name) => isGiven(name as Choice))
  const fromBackup = isGiven('db') || isGiven('files') || isGiven('all') ? 'backup' : undefined
  const task = named[0] ?? fromBackup ?? (isGiven('queue') || isGiven('grafana') ? 'part' : undefined)
  if (!task || named.length > 1)
    throw usage(
      'Say one thing to do: --db NAMES, --files, --all, --queue or --grafana (from a backup), --time WHEN (the whole cluster), --to-blank, --list, --status, --undo, --drop NAME.',
    )
  const choices: readonly Choice[] = GOES_WITH[task]
  const stray = CHOICES.find((one) => isGiven(one) && !choices.includes(one))
  const what = WORDS[task as keyof typeof WORDS] ?? `--${task}`
  if (stray)
    throw usage(
      `--${stray} does not go with ${what}.${task === 'time' ? ' The time for single databases is --before: the newest backup from before it.' : ''}`,
    )
  for (const [one, other] of [
    ['all', 'db'],
    ['all', 'files'],
    ['run', 'before'],
    ['queue', 'grafana'],
    ['queue', 'db'],
    ['queue', 'files'],
    ['grafana', 'db'],
    ['grafana', 'files'],
  ] as const)
    if (isGiven(one) && isGiven(other)) throw usage(`--${one} and --${other} exclude each other.`)
  return task
}

const usage = (message: string) => new Stop(message, ['npx tsx scripts/restore.ts --help'], EXIT.usage)
