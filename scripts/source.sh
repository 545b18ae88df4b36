#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# source.sh PACKAGE DIR: the source of a Debian package, unpacked in DIR. It is
# fetched from where this machine has its packages from; apt's own lists and
# sources stay as they are. What is there is left alone.
set -euo pipefail

package=$1 dir=$2
mkdir -p "$dir"
cd "$dir"
compgen -G "$package-*/" >/dev/null && exit 0

if ! command -v dpkg-source >/dev/null || ! command -v apt-get >/dev/null; then
  echo "source: apt-get and dpkg-source are needed (Debian: dpkg-dev)" >&2
  exit 1
fi
mkdir -p apt/lists/partial
apt-get indextargets 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
  --format "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \$(REPO_URI) \$(CODENAME) \$(COMPONENT)" |
  sort -u >apt/sources.list
apt=(apt-get -qq -o Dir::Etc::sourcelist="$PWD/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$PWD/apt/lists")
"${apt[@]}" update
"${apt[@]}" source "$package" >/dev/null
