#!/bin/sh
rm -f /app/tmp/pids/server.pid
until node /app/app.cjs pg_isready; do
  echo "waiting for postgres"
  sleep 2
done
exec "$@"
