#!/bin/bash
# Both must live: when one dies, so does the container.
set -u
docker-registry serve /etc/docker/registry/registry.yml &
docker-registry serve /etc/docker/registry/mirror.yml &
trap 'kill $(jobs -p); wait; exit 0' TERM INT
wait -n
status=$?
kill $(jobs -p) 2> /dev/null
exit "$((status == 0 ? 1 : status))"
