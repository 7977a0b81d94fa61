#!/bin/sh
# Boots the machine, behind this container's address. At its first start it gets what a hoster's panel gives: a name,
# host keys, root's key, and where packages come from. $HOSTS are lines for its /etc/hosts, $SOURCE is apt's.
set -e
if [ ! -e /disk ]; then
  cd /system/etc
  echo machine > hostname
  printf '127.0.0.1 localhost machine\n%s\n' "$HOSTS" > hosts
  echo 'nameserver 10.0.2.3' > resolv.conf
  rm -f apt/sources.list.d/*
  echo "$SOURCE" > apt/sources.list
  ssh-keygen -q -A -f /system
  install -D -m 600 /given/id_ed25519.pub /system/root/.ssh/authorized_keys
  # Believed as soon as the package ca-certificates is there.
  install -D -m 644 /given/ca.pem /system/usr/local/share/ca-certificates/rehearsal.crt
  cd /
  truncate -s 30G /disk.next
  mke2fs -q -t ext4 -d /system /disk.next
  mv /disk.next /disk
fi
# Emulated, which is slow, but the same on every machine: where there is a /dev/kvm, it need not be one that boots this kernel
# (seen: kvm_pvm).
exec qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 10G -display none -monitor none -serial stdio \
  -kernel /system/vmlinuz -initrd /system/initrd.img -append 'root=/dev/vda rw console=ttyS0 quiet' \
  -drive file=/disk,format=raw,if=virtio \
  -netdev user,id=lan,hostfwd=tcp::22-:22,hostfwd=tcp::80-:80,hostfwd=tcp::443-:443 -device virtio-net-pci,netdev=lan
