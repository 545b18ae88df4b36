#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target of the module for FUZZTIME each: those in Go, whose
# crashers are left below the package's testdata/fuzz, where they become
# regression tests, and those of the OpenSSL provider in C, by libFuzzer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fuzztime=${FUZZTIME:-10s}
count=0 failed=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz DIR TARGET. On a loaded machine the fuzzing engine may report its own
# deadline as a failure of the target (golang.org/issue/75804): that is no
# finding, and is tried once more. A finding names the input it wrote.
fuzz() {
  local try
  for try in 1 2; do
    go test -vet=off -run '^$' -fuzz "^$2\$" -fuzztime "$fuzztime" "./$1" 2>&1 | tee "$log" && return
    if ((try == 2)) || grep -q 'Failing input written' "$log" || ! grep -q 'context deadline exceeded' "$log"; then
      return 1
    fi
    echo "fuzz: the engine ran into its own deadline; once more"
  done
}

while IFS=: read -r file target; do
  count=$((count + 1))
  echo "$(dirname "$file") $target"
  fuzz "$(dirname "$file")" "$target" || failed+=("$target")
done < <(grep -roH --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's,^\./,,; s/:func /:/' | sort)

# seconds DURATION: libFuzzer knows nothing of 2s, 10m or 1h.
seconds() {
  local -A unit=([s]=1 [m]=60 [h]=3600)
  local total=0 rest=$1
  while [[ $rest =~ ^([0-9]+)([smh])(.*)$ ]]; do
    total=$((total + BASH_REMATCH[1] * unit[${BASH_REMATCH[2]}]))
    rest=${BASH_REMATCH[3]}
  done
  [[ -z $rest ]] || { echo "fuzz: FUZZTIME=$1 is not a time, as 10s or 1m" >&2; return 1; }
  echo "$total"
}

provider=(crypto/provider/fuzz/*_fuzz.c)
count=$((count + ${#provider[@]}))
limit=$(seconds "$fuzztime")
make --no-print-directory -C crypto/provider fuzz OUT="$PWD/bin" SECONDS="$limit" || failed+=(crypto/provider)

echo "$count fuzz targets, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
((count > 0 && ${#failed[@]} == 0))
