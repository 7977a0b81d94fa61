#!/bin/sh
# Makes /docker a signed repository as https://download.docker.com is one.
set -e
SITE=/docker/linux/debian
POOL=$SITE/dists/bookworm/pool/stable/amd64
mkdir -p $POOL

# pack NAME DEPENDS "FILES" DEB...: those files of Debian's packages, under Docker's name
pack() {
  name=$1 depends=$2 files=$3
  shift 3
  rm -rf /from "/tree/$name"
  mkdir -p /from "/tree/$name/DEBIAN"
  for deb in "$@"; do dpkg-deb -x "$deb" /from; done
  (cd /from && cp -a --parents $files "/tree/$name")
  cat > "/tree/$name/DEBIAN/control" <<END
Package: $name
Version: 5:26.1.5-1~debian.12~bookworm
Architecture: amd64
Maintainer: Rehearsal <nobody@kgc.test>
Depends: $depends
Conflicts: docker.io, containerd, runc
Description: stands in for Docker's own package
END
  [ "$name" != docker-ce ] || install -m 755 /docker-ce.postinst /tree/docker-ce/DEBIAN/postinst
  dpkg-deb --root-owner-group -Znone -b "/tree/$name" "$POOL/$name.deb" > /dev/null
}

pack docker-ce 'containerd.io, docker-ce-cli, iptables, libc6, libsystemd0' \
  'usr/bin usr/sbin usr/lib/systemd/system' /trixie/docker.io_*.deb /trixie/tini_*.deb
pack docker-ce-cli libc6 usr/bin/docker /trixie/docker-cli_*.deb
pack containerd.io 'libc6, libseccomp2' \
  'usr/bin usr/sbin usr/lib/systemd/system' /trixie/containerd_*.deb /mirror/bookworm/runc_*.deb
pack docker-compose-plugin 'docker-ce-cli, libc6' usr/libexec/docker/cli-plugins /trixie/docker-compose_*.deb
rm -rf /from /tree /trixie

export GNUPGHOME=/gnupg
mkdir -m 700 $GNUPGHOME
gpg --batch -q --passphrase '' --quick-gen-key 'Docker Release (rehearsal)' rsa3072 sign never
gpg --armor --export > $SITE/gpg
gpg --with-colons --fingerprint | sed -n 's/^fpr:*\([0-9A-F]*\):$/\1/p' | head -n 1 > $SITE/fingerprint

cd $SITE
mkdir -p dists/bookworm/stable/binary-amd64
apt-ftparchive packages dists/bookworm/pool > dists/bookworm/stable/binary-amd64/Packages
cd dists/bookworm
apt-ftparchive -o APT::FTPArchive::Release::Origin=Docker -o APT::FTPArchive::Release::Suite=bookworm \
  -o APT::FTPArchive::Release::Codename=bookworm -o APT::FTPArchive::Release::Components=stable \
  -o APT::FTPArchive::Release::Architectures=amd64 release . > Release
gpg --batch -q --clearsign -o InRelease Release
