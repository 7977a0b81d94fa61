import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { s3Client } from '../../lib/backup/s3-client.ts'
import { sh } from '../../lib/shell.ts'
import { docker, local } from './engine.ts'
import { IMAGES, inState, NETWORKS, S3 } from './names.ts'
import { OWNER, running, until } from './server.ts'

/** `owner` made the bucket; `writer` gets the rights that a test gives it. */
export type S3User = 'owner' | 'writer'
const USERS = inState('s3/users')
const hex = (bytes: number) => randomBytes(bytes).toString('hex')

/** The S3 server outlives the server, as Wasabi does: its keys are made once. What another checkout left has other keys. */
export async function makeS3Keys(): Promise<void> {
  if (existsSync(USERS)) return
  await local.probe(sh`docker rm -f ${S3.container}`)
  await local.probe(sh`docker volume rm ${S3.container}`)
  const line = (name: S3User) => `${name} ${hex(10).toUpperCase()} ${hex(20)}\n`
  writeFileSync(USERS, line('owner') + line('writer'), { mode: 0o600 })
}

export function s3Keys(user: S3User = 'owner'): { id: string; secret: string } {
  const line = readFileSync(USERS, 'utf8')
    .split('\n')
    .find((text) => text.startsWith(`${user} `))
  const [, id = '', secret = ''] = line?.split(' ') ?? []
  return { id, secret }
}

/** The identity that reads the backups; in production it is kept off the server, here beside the rehearsal's other keys. */
export const AGE_IDENTITY = inState('age-identity.txt')

/** Made by the library, not by the program that the backup encrypts with: each checks the other. */
export async function makeAgeIdentity(): Promise<void> {
  if (existsSync(AGE_IDENTITY)) return
  const { generateIdentity, identityToRecipient } = await import('age-encryption')
  const identity = await generateIdentity()
  writeFileSync(AGE_IDENTITY, `# public key: ${await identityToRecipient(identity)}\n${identity}\n`, { mode: 0o600 })
}

export const ageRecipient = () => /age1\w+/.exec(readFileSync(AGE_IDENTITY, 'utf8'))?.[0] ?? ''

/** Starts the S3 server and makes the bucket, with object lock. Its objects are in a volume and outlive its container. */
export async function startS3(): Promise<void> {
  if (!(await running(S3.container))) await runS3()
  const answers = sh`curl -sS -o /dev/null -m 3 --cacert ${inState('ca.pem')} ${S3.endpoint}`
  const isUp = () => until(async () => (await local.probe(answers)).code === 0, 'the S3 server', 120)
  await isUp().catch(async (error) => {
    // Seen twice on a busy machine: at its very first start Ceph refused the disk that it had just made ("wrong fsid").
    if ((await local.probe(sh`docker exec ${S3.container} test -e /var/lib/ceph/ready`)).code === 0) throw error
    await local.probe(sh`docker rm -f ${S3.container}`)
    await local.probe(sh`docker volume rm ${S3.container}`)
    await runS3()
    await isUp()
  })
  await makeBucket(S3.bucket)
}

async function runS3(): Promise<void> {
  await local.probe(sh`docker rm -f ${S3.container}`)
  await docker(
    sh`run -d --name ${S3.container} ${OWNER} --network ${NETWORKS.main.name} --ip ${S3.address} --volume ${`${S3.container}:/var/lib/ceph`} --volume ${`${inState('s3')}:/config:ro`} ${`${IMAGES}/s3`}`,
  )
}

async function makeBucket(name: string): Promise<void> {
  const { client, s3 } = await s3Client(s3Settings())
  try {
    await client.send(new s3.CreateBucketCommand({ Bucket: name, ObjectLockEnabledForBucket: true }))
  } catch (error) {
    if (!(error instanceof Error) || !/BucketAlready/.test(error.name)) throw error
  } finally {
    client.destroy()
  }
}

export const s3Settings = (user: S3User = 'owner') => ({
  S3_ENDPOINT: S3.endpoint,
  S3_REGION: 'us-east-1',
  S3_BUCKET: S3.bucket,
  S3_PREFIX: 'kgc',
  S3_ACCESS_KEY_ID: s3Keys(user).id,
  S3_SECRET_ACCESS_KEY: s3Keys(user).secret,
  S3_CA_FILE: inState('ca.pem'),
  S3_TIMEOUT: 20,
})
