#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# sysroot-arm64.sh DIR: Debian's OpenSSL 3 for arm64, headers and library, below
# DIR, for the cross compiler. Fetched with apt-get's own means into folders of
# its own, since to install it would tie its version to this machine's OpenSSL.
# Nothing is done when it is there already.
set -euo pipefail

sysroot=${1:?usage: $0 DIR}
[[ -e $sysroot/usr/lib/aarch64-linux-gnu/libcrypto.so ]] && exit 0
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "sysroot: apt-get and dpkg-deb are needed to fetch libssl-dev for arm64" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,debs}
touch "$work/state/status"
apt=(apt-get -qq -o "Dir::State=$work/state" -o "Dir::State::status=$work/state/status" -o "Dir::Cache=$work/cache"
  -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o Acquire::Retries=3)
"${apt[@]}" update
(cd "$work/debs" && "${apt[@]}" download libssl-dev libssl3)

mkdir -p "$sysroot"
for deb in "$work"/debs/*.deb; do
  dpkg-deb -x "$deb" "$work/root"
done
cp -a "$work/root/usr" "$sysroot/"
