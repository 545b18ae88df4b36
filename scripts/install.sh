#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# install.sh install|uninstall ROOT: copies what make built below ROOT, which is
# DESTDIR and PREFIX together, or takes it away again. Configuration under
# /etc and running services are left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

action=${1:-}
root=${2:-}
if [[ $action != install && $action != uninstall || -z $root ]]; then
  echo "usage: $0 install|uninstall ROOT" >&2
  exit 2
fi

# put MODE SOURCE TARGET, below the root.
put() {
  if [[ $action == install ]]; then
    install -D -m "$1" "$2" "$root/$3"
  else
    rm -f "$root/$3"
  fi
}

if [[ $action == install && ! -f bin/libpno.so ]]; then
  echo "install: bin/ is not built; run make build first" >&2
  exit 1
fi

for command in cmd/*/; do
  name=$(basename "$command")
  put 755 "bin/$name" "bin/$name"
done
put 755 bin/libpno.so lib/pno/libpno.so
put 755 bin/pno.so lib/pno/pno.so
shopt -s nullglob
for unit in deploy/*.service; do
  put 644 "$unit" "lib/systemd/system/$(basename "$unit")"
done
for sample in deploy/*.yaml deploy/*.yml; do
  put 644 "$sample" "share/doc/pno/examples/$(basename "$sample")"
done
if [[ $action == uninstall ]]; then
  rmdir --ignore-fail-on-non-empty "$root/lib/pno" "$root/share/doc/pno/examples" "$root/share/doc/pno" 2>/dev/null || true
fi
