#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bench-compare.sh REV: the Go benchmarks of REV and of the working tree in
# turn, compared by benchstat. PKGS, BENCH and COUNT narrow it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=${1:-}
if [[ -z $base ]] || ! git rev-parse --quiet --verify "$base^{commit}" >/dev/null; then
  echo "usage: make bench-compare BASE=rev [PKGS='./offload/...'] [BENCH=regexp] [COUNT=10]" >&2
  exit 2
fi
read -ra packages <<<"${PKGS:-./offload/... ./dpu/... ./sim/...}"
count=${COUNT:-10}

work=$(mktemp -d)
cleanup() {
  git worktree remove --force "$work/base" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
git worktree add --quiet --detach "$work/base" "$base"

run() { (cd "$1" && go test -run '^$' -bench "${BENCH:-.}" -benchmem -count=1 "${packages[@]}") >>"$2"; }

# In turn, round by round: a machine that warms up or is disturbed then does
# not favour either side.
for ((i = 1; i <= count; i++)); do
  echo "round $i of $count" >&2
  run "$work/base" "$work/base.txt"
  run . "$work/tree.txt"
done

mkdir -p tools/bin
GOBIN=$PWD/tools/bin go -C tools install tool
tools/bin/benchstat "$base=$work/base.txt" "tree=$work/tree.txt"
