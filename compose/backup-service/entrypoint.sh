#!/bin/sh
# cron starts its jobs with an empty environment: the container's own is kept for them, in memory (/run is a tmpfs).
set -e
umask 077
export -p > /run/backup.env
exec "$@"
