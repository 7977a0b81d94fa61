#!/bin/bash
# /config has what is asked of it: tls.crt, tls.key, and users (one a line: name access-key secret-key).
set -euo pipefail
data=/var/lib/ceph
mkdir -p "$data/mon" "$data/osd" /var/run/ceph
if [ ! -f "$data/ready" ]; then
  rm -rf "$data/mon" "$data/osd" && mkdir -p "$data/mon" "$data/osd"
  monmaptool --create --clobber --addv m '[v1:127.0.0.1:6789]' --fsid "$(ceph-conf --lookup fsid)" /tmp/monmap > /dev/null
  ceph-mon --mkfs -i m --mon-data "$data/mon" --monmap /tmp/monmap
fi
ceph-mon -f -i m --mon-data "$data/mon" --setuser root --setgroup root &
if [ ! -f "$data/ready" ]; then
  ceph osd new "$(cat /proc/sys/kernel/random/uuid | tee /tmp/osd)" > /dev/null
  ceph-osd -i 0 --mkfs --osd-data "$data/osd" --osd-uuid "$(cat /tmp/osd)" --osd-objectstore bluestore
fi
ceph-osd -f -i 0 --osd-data "$data/osd" --setuser root --setgroup root &
while read -r name access secret <&3; do
  radosgw-admin user info --uid "$name" > /dev/null 2>&1 \
    || radosgw-admin user create --uid "$name" --display-name "$name" --access-key "$access" --secret-key "$secret" > /dev/null
done 3< /config/users
touch "$data/ready"
radosgw -f -n client.rgw.s3 --setuser root --setgroup root &
trap 'kill $(jobs -p); wait; exit 0' TERM INT
wait -n
status=$?
kill $(jobs -p) 2> /dev/null
exit "$((status == 0 ? 1 : status))"
