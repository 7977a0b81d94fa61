import { type ServerFile, serverText } from './put-file.ts'

/** What the server's programs report with, and what a unit needs to tell of its failure: `OnFailure=kgc-alert@%p.service`. */
export const TELLING_FILES: ServerFile[] = [
  { path: '/usr/local/sbin/kgc-tell', content: serverText('kgc-tell'), mode: '755' },
  { path: '/etc/systemd/system/kgc-alert@.service', content: serverText('kgc-alert@.service'), mode: '644' },
]

/** @param webhook undefined when none is configured: what is told is in the journal then */
export const webhookFile = (webhook: string | undefined): ServerFile => ({
  path: '/etc/kgc/slack-webhook',
  content: webhook ? `${webhook}\n` : '',
})
