#!/usr/bin/env bash
# Makes a Debian image without an image registry, by debootstrap, and loads it into docker or podman. Needs root.
#
#   docker/base_image.sh TAG PACKAGE...       e.g. localhost/plumbline-base:bookworm python3 ca-certificates
#
# ENGINE (docker) loads it; MIRROR is where Debian's packages come from; CACHE keeps the bare system between calls.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6p' "$0"; exit 2; }
[ "$(id -u)" = 0 ] || { echo "base_image.sh: debootstrap and chroot need root" >&2; exit 1; }
command -v debootstrap > /dev/null || { echo "base_image.sh: no debootstrap (Debian: apt-get install debootstrap)" >&2; exit 1; }
tag=$1; shift
engine=${ENGINE:-docker}
mirror=${MIRROR:-http://deb.debian.org/debian}
security=${SECURITY_MIRROR:-http://deb.debian.org/debian-security}
suite=bookworm
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/plumbline}
bare=$cache/debian-$suite.tar
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$cache" "$root"

in_root() { DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" "$@" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }; }

if [ ! -f "$bare" ] || [ -n "$(find "$bare" -mtime +7)" ]; then
  debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  printf 'deb %s %s main\ndeb %s %s-updates main\ndeb %s %s-security main\n' \
    "$mirror" $suite "$mirror" $suite "$security" $suite > "$root/etc/apt/sources.list"
  printf 'path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n' \
    > "$root/etc/dpkg/dpkg.cfg.d/lean"
  printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"  # no service starts while it is installed
  chmod +x "$root/usr/sbin/policy-rc.d"
  in_root apt-get update -qq
  in_root apt-get dist-upgrade -qq -y
  tar -C "$root" -cf "$bare.$$" . && mv "$bare.$$" "$bare"
else
  tar -C "$root" -xf "$bare"
fi
cp /etc/resolv.conf "$root/etc/resolv.conf"
mkdir -p "$root/etc/postgresql-common" && echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"
[ $# -eq 0 ] || in_root apt-get install -qq -y --no-install-recommends "$@"
in_root apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/usr/share/locale/* "$root"/usr/share/man/* "$root"/var/log/*.log "$root"/var/cache/debconf/*
find "$root/usr/share/doc" -type f ! -name copyright -delete
: > "$root/etc/resolv.conf"
tar -C "$root" --sort=name --numeric-owner -c . | "$engine" import - "$tag"
