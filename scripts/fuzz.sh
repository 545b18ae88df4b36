#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target of the module for FUZZTIME each, as many at once as
# there are processors: those in Go, whose crashers are left below the package's
# testdata/fuzz, where they become regression tests, and those of the OpenSSL
# provider in C, by libFuzzer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fuzztime=${FUZZTIME:-10s}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=$(go env GOCACHE)/fuzz/$(go list -m) # as go test -fuzz keeps it

# out_of_time LOG: the fuzzing engine may report the end of its time as a failure
# of the target (golang.org/issue/75804). A finding says something else, and
# names the input it wrote.
out_of_time() {
  [[ $(grep -A1 -e '^--- FAIL' "$1" | tail -n +2 | tr -d ' ') == contextdeadlineexceeded ]] &&
    ! grep -q 'Failing input written' "$1"
}

fuzzed() { grep -q 'execs: [1-9]' "$1"; }

# run DIR TARGET TEST: one target, by its package's test program.
run() {
  cd "$1"
  "$3" -test.run '^$' -test.fuzz "^$2\$" -test.fuzztime "$fuzztime" -test.parallel 1 -test.fuzzcachedir "$corpus/$1"
}

# fuzz DIR TARGET TEST: the same, told in one piece. On a loaded machine the time
# may be over before the fuzzing has begun: once more, then.
fuzz() {
  local log=$work/${1//\//_}.$2 tries=3
  until (run "$@") >"$log" 2>&1 || { out_of_time "$log" && fuzzed "$log"; }; do
    tries=$((tries - 1))
    if ((tries == 0)) || ! out_of_time "$log"; then
      echo "$1 $2" >>"$work/failed"
      break
    fi
  done
  sed "1i $1 $2" "$log"
}

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

limit=$(seconds "$fuzztime")
provider() {
  local rc=0
  make --no-print-directory -C crypto/provider fuzz OUT="$PWD/bin" SECONDS="$limit" >"$work/provider" 2>&1 || rc=$?
  ((rc == 0)) || echo crypto/provider >>"$work/failed"
  cat "$work/provider"
}

# free waits until a processor is.
free() { while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n || true; done; }

targets=(crypto/provider/fuzz/*_fuzz.c)
count=${#targets[@]}
provider &
while IFS=: read -r file target; do
  count=$((count + 1))
  dir=$(dirname "$file")
  test=$work/${dir//\//_}.test
  free
  if [[ ! -e $test ]] && ! go test -vet=off -c -fuzz=. -o "$test" "./$dir"; then
    echo "$dir $target" >>"$work/failed"
    continue
  fi
  fuzz "$dir" "$target" "$test" &
done < <(grep -roH --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's,^\./,,; s/:func /:/' | sort)
wait

failed=$(cat "$work/failed" 2>/dev/null || true)
[[ -z $failed ]] || printf 'failed:\n%s\n' "$failed"
echo "$count fuzz targets, $(grep -c . <<<"$failed" || true) failed"
((count > ${#targets[@]})) && [[ -z $failed ]]
