// Stands in for the KGC frontend: a page that names its release, and one asset whose name changes with it.
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import { close, html, listen, onStop, pathOf, send } from './common.ts'

const { VERSION: version = 'v0', PORT = '3000' } = process.env
const script = `document.title = 'KGC ERP ${version}';\n`
const asset = `/assets/app.${createHash('sha256').update(script).digest('hex').slice(0, 8)}.js`
const page = `<!doctype html>
<html lang="hu">
<head><meta charset="utf-8"><meta name="release" content="${version}"><title>KGC ERP</title><script src="${asset}" defer></script></head>
<body><div id="root">KGC ERP</div></body>
</html>
`

const server = createServer((request, response) => {
  const { pathname } = pathOf(request)
  if (request.method !== 'GET' && request.method !== 'HEAD') return send(response, 405, 'method not allowed')
  if (pathname === '/health') return send(response, 200, { status: 'ok', version })
  if (pathname === asset) {
    return send(response, 200, script, {
      'content-type': 'text/javascript; charset=utf-8',
      'cache-control': 'public, max-age=31536000, immutable',
    })
  }
  if (pathname.startsWith('/assets/')) return send(response, 404, 'not found')
  send(response, 200, page, { ...html, 'cache-control': 'no-cache' })
})

listen(server, Number(PORT))
onStop(() => close(server))
