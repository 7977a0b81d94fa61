#!/usr/bin/env bash
# Keeps the past restorable: a full backup every week, what changed every night, at 04:00 of this container's zone, after
# the dumps of 02:00. What a stopped server missed is made up for, as the question is always: is a backup due?
#   keep.sh            rounds, one every five minutes
#   keep.sh due        prints the backup that is due, if any: full or incr
#   keep.sh info       what pgBackRest says of the repository, as JSON
#   keep.sh gap        prints the pieces of the log that S3 should have and has not
#   keep.sh verify     reads everything in S3 and compares it with what was stored
set -uo pipefail
metrics=/var/lib/pitr/metrics

if [ "$(id -u)" = 0 ]; then
  mkdir -p $metrics && chown postgres:postgres $metrics || exit
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*"; }
pgb() { pgbackrest --stanza=kgc "$@"; }
query() { psql -XAtq -d postgres -v ON_ERROR_STOP=1 -c "$1"; }

# newest FILTER FIELD: of the newest backup that the jq filter takes.
newest() { jq -r "[.[0].backup[]? | select($1)] | max_by(.timestamp.stop) | $2 // empty" <<< "$info"; }

# The last time that it was 04:00 on the given day of the week (1 is Monday), or on any day.
last_four() {
  local days=0 at
  [ -z "${1:-}" ] || days=$((($(date +%u) - $1 + 7) % 7))
  at=$(date -d "04:00 $days days ago" +%s)
  [ "$at" -le "$(date +%s)" ] || at=$(date -d "04:00 $((days + ${1:+6} + 1)) days ago" +%s)
  echo "$at"
}

due() {
  local info full any line
  info=$(pgb info --output=json) || return 1
  full=$(newest '.type == "full"' .timestamp.start)
  any=$(newest true .timestamp.start)
  if [ -z "$full" ] || [ "$full" -lt "$(last_four 7)" ]; then
    echo full
  elif [ "$any" -lt "$(last_four)" ]; then
    echo incr
  else
    # After a restore to a time the log goes on as another line, which starts without a backup of its own.
    line=$(query 'SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)') || return 1
    [ "$(newest true '.archive.start[0:8]')" = "$line" ] || echo incr
  fi
}

# A piece's number in its line: 256 of them share the middle of the name.
number() { echo $((16#${1:8:8} * 256 + 16#${1:16:8})); }

# Postgres believes what pgBackRest tells it, and that is "archived" also for what it gave up because the queue was full.
gap() {
  local info first last id name names
  last=$(query "SELECT last_archived_wal FROM pg_stat_archiver WHERE last_archived_wal ~ '^[0-9A-F]{24}$'") || return 1
  info=$(pgb info --output=json) || return 1
  first=$(newest true .archive.start)
  if [ -z "$last" ] || [ "${first:0:8}" != "${last:0:8}" ]; then return 0; fi
  names=$(pgb repo-ls --recurse "archive/kgc/$(jq -r '.[0].archive[-1].id' <<< "$info")") || return 1
  names=$(grep -oE "${last:0:8}[0-9A-F]{16}" <<< "$names" | sort -u)
  for ((id = $(number "$first"); id <= $(number "$last"); id++)); do
    name=$(printf '%s%08X%08X' "${last:0:8}" $((id / 256)) $((id % 256)))
    case $names in *"$name"*) ;; *) echo "$name" ;; esac
  done
}

# Once in 30 days, as it costs the traffic of the whole; every day while something is damaged.
verify_due() {
  local days=30
  grep -qs '^kgc_pitr_verify_ok 1' $metrics/kgc_pitr_verify.prom || days=1
  [ -z "$(find $metrics -name kgc_pitr_verify.prom -mtime -$days)" ]
}

# pgBackRest ends with 0 whatever it found (2.45, tried); what it says is what counts.
verify() {
  local said ok=1
  said=$(pgb --output=text verify 2>&1) || ok=0
  if grep -q 'status: error' <<< "$said"; then ok=0; fi
  [ $ok = 1 ] || say "DAMAGED: $said"
  cat > $metrics/.verify <<END && mv $metrics/.verify $metrics/kgc_pitr_verify.prom
kgc_pitr_verify_ok $ok
kgc_pitr_verify_timestamp_seconds $(date +%s)
END
  [ $ok = 1 ]
}

round() {
  local type missing
  if [ -n "$work" ] && kill -0 "$work" 2> /dev/null; then return 0; fi
  if [ -n "$work" ]; then wait "$work" || say "that failed with exit code $?"; work=; fi
  missing=$(gap) || return 1
  type=$(due) || return 1
  cat > $metrics/.next <<END && mv $metrics/.next $metrics/kgc_pitr.prom
kgc_pitr_round_timestamp_seconds $(date +%s)
kgc_pitr_backup_timestamp_seconds $(pgb info --output=json | jq '[.[0].backup[]?.timestamp.stop] | max // 0')
kgc_pitr_missing_pieces $(grep -c . <<< "$missing")
END
  if [ -n "$missing" ]; then
    say "GAP: S3 has not $(wc -l <<< "$missing") pieces of the log from $(head -n 1 <<< "$missing"); a new backup starts after it"
    type=${type:-incr}
  fi
  if [ -n "$type" ]; then
    say "backup: $type"
    pgb --log-level-console=info backup --type="$type" &
    work=$!
  elif verify_due; then
    say 'verify'
    verify &
    work=$!
  fi
}

case ${1:-} in
  due | gap | verify) "$1"; exit ;;
  info) pgb info --output=json; exit ;;
esac

trap 'exit 0' TERM INT
work=
until pg_isready -q; do sleep 1; done
until pgb stanza-create; do sleep 30 & wait $!; done
while true; do
  if round; then touch /tmp/healthy; else say 'this round failed: the database or S3 did not answer'; fi
  sleep "300" & wait $!
done
