#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target of the module for FUZZTIME each. A crasher is left
# below the package's testdata/fuzz, where it becomes a regression test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fuzztime=${FUZZTIME:-10s}
count=0 failed=()
while IFS=: read -r file target; do
  count=$((count + 1))
  echo "$(dirname "$file") $target"
  go test -vet=off -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "./$(dirname "$file")" ||
    failed+=("$target")
done < <(git ls-files -co --exclude-standard '*_test.go' |
  { xargs grep -oH '^func Fuzz[A-Za-z0-9_]*' || true; } | sed 's/:func /:/')

echo "$count fuzz targets, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
((${#failed[@]} == 0))
