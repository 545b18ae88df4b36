#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything that reads the code without running it. Like the suite, it goes
# through all checks before it fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

scripts/deps.sh lint || exit
tools=$PWD/tools/bin
mkdir -p "$tools"
GOBIN=$tools go -C tools/lint install tool || exit
GOBIN=$tools go -C tools/buf install tool || exit

failed=0
check() {
  echo "lint: $1"
  shift
  "$@" || failed=1
}

check "golangci-lint" "$tools/golangci-lint" run ./...
check "golangci-lint for arm64" env GOARCH=arm64 CGO_ENABLED=0 "$tools/golangci-lint" run ./...
check "buf lint" "$tools/buf" lint proto
check shellcheck shellcheck -x scripts/*.sh .ci/run
exit "$failed"
