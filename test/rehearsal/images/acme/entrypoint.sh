#!/bin/sh
# Every name leads to the server.
pebble-challtestsrv -defaultIPv4 "${SERVER_ADDRESS:?}" -defaultIPv6 '' -http01 '' -https01 '' -tlsalpn01 '' -doh '' -dnsserver 127.0.0.1:8053 -management 127.0.0.1:8055 &
pebble -strict -config /app/pebble.json -dnsserver 127.0.0.1:8053 &
exec node /app/app.cjs
