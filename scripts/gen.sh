#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# gen.sh: rewrites the generated code, with generators built from the versions
# pinned in tools/. gen.sh check: does so, and fails if git sees a difference.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$PWD/tools/bin
generated=(shim/abi.h host/counters.go shim/counters.go ':(glob)proto/**/*.pb.go' docs/deps docs/compat.md)

mkdir -p "$tools"
GOBIN=$tools go -C tools install tool
GOBIN=$tools go -C tools/buf install tool

go run ./offload/genabi -o shim/abi.h
go run ./shim/gencompat -o docs/compat.md
go generate ./...
(cd proto && PATH=$tools:$PATH buf generate)
go test -count=1 -run '^TestDependencyLists$' . -update

if [[ ${1:-} == check ]]; then
  # status, not diff: a file that the generator newly writes counts too.
  changed=$(git status --porcelain -- "${generated[@]}")
  if [[ -n $changed ]]; then
    printf 'generated code differs from what is committed; commit the result of make gen:\n%s\n' "$changed" >&2
    git --no-pager diff --stat -- "${generated[@]}" >&2
    exit 1
  fi
fi
