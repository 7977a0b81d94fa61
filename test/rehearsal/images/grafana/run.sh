#!/bin/sh
exec node /usr/share/grafana/app.cjs "$@"
