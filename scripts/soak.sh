#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# soak.sh DURATION: the end-to-end suite and the race tests, in a shuffled order
# and again and again, until DURATION (90s, 30m, 8h) is over or one fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  *[0-9]s) seconds=${1%s} ;;
  *[0-9]m) seconds=$((${1%m} * 60)) ;;
  *[0-9]h) seconds=$((${1%h} * 3600)) ;;
  *)
    echo "usage: $0 DURATION, such as 90s, 30m or 8h" >&2
    exit 2
    ;;
esac

mapfile -t packages < <(go list ./... | grep -E '^pno/(offload|shim|host|dpu|sim)(/|$)')
rounds=0
while ((SECONDS < seconds)); do
  rounds=$((rounds + 1))
  echo "soak: round $rounds, ${SECONDS}s of ${seconds}s"
  go test -count=1 -shuffle=on -timeout 30m ./e2e/...
  go test -count=1 -shuffle=on -timeout 30m -race "${packages[@]}"
done
echo "soak: OK, $rounds rounds in ${SECONDS}s"
