import { RECORDS, ROOT } from './layout.ts'
import type { ReleaseRecord } from './release.ts'
import { type Command, sh } from './shell.ts'

/** Appends one line. It begins with a newline so that a line torn by a crash cannot spoil this one. */
export const appendRecord = (record: Partial<ReleaseRecord> & { id: string }): Command =>
  sh`cd ${ROOT} && printf ${'\n%s\n'} ${JSON.stringify(record)} >> ${RECORDS}`
