#!/bin/sh
set -e
if [ "$DISABLE_DB_MIGRATIONS" != "true" ]; then
  node /app/app.cjs upgrade
fi
exec "$@"
