#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# test.sh [section…]: the whole suite, or the named sections of it. Every
# section runs even if an earlier one failed; the exit status and the closing
# lines tell which did. Without what the suite needs, nothing is run.
#
# A section that fails is run a second time, since timing on a shared machine is
# nobody's fault; if it passes then, the closing lines name it as flaky, which is
# a bug to be mended. TEST_TRIES=1 is strict.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

arm64=(env GOOS=linux GOARCH=arm64 CGO_ENABLED=0)

# Vetting is a section of its own, so go test need not repeat it.
go_test=(go test -vet=off)

section_build() { make --no-print-directory build; }
section_arm64-build() { make --no-print-directory arm64; }

section_format-vet() {
  local unformatted
  unformatted=$(gofmt -l .)
  if [[ -n $unformatted ]]; then
    printf 'not formatted:\n%s\n' "$unformatted"
    return 1
  fi
  go vet ./...
}

section_unit() { packages '' | xargs "${go_test[@]}" -count=1 -timeout 8m; }

# Where goroutines meet; cmd/, bench/ and proto/ have nothing of their own, and
# the provider is C, tested from outside.
section_race() {
  packages '^pno/(offload|shim|host|dpu|sim|crypto|internal)(/|$)' | grep -v '^pno/crypto/provider' |
    xargs "${go_test[@]}" -race -timeout 8m
}

section_shim() { make --no-print-directory test-shim; }
section_conformance() { "${go_test[@]}" -count=1 -timeout 8m ./shim/conformance; }
# What random programs of socket calls have found, and a minute of new ones. They
# are the same every time, however fast the machine is; DIFFFUZZ_SEED=n plays
# others, make fuzz-diff as many as wanted.
section_difffuzz() {
  "${go_test[@]}" -count=1 -timeout 8m ./shim/difffuzz \
    -fuzz-for 60s -fuzz-programs 2000 -fuzz-seed "${DIFFFUZZ_SEED:-1}"
}
# Instructions of the shim's hot calls, under callgrind.
section_hotcalls() { "${go_test[@]}" -count=1 -timeout 8m ./bench/hotcalls; }
section_provider() { make --no-print-directory test-provider; }

section_arm64-unit() {
  "${arm64[@]}" "${go_test[@]}" -timeout 8m -exec qemu-aarch64-static ./offload/... ./dpu/...
  make --no-print-directory test-provider-arm64
}

# make exports FUZZTIME for make fuzz; here each target only shows that it runs.
section_fuzz() { FUZZTIME=${TEST_FUZZTIME:-2s} scripts/fuzz.sh; }

# A benchmark that no longer runs measures nothing: each goes round once.
section_bench-once() {
  local dirs
  dirs=$(grep -rl --include='*_test.go' --exclude-dir=e2e '^func Benchmark' . | xargs -n1 dirname | sort -u)
  xargs "${go_test[@]}" -run '^$' -bench . -benchtime 1x -timeout 5m <<<"$dirs"
}

section_e2e() {
  if ((EUID != 0)); then
    echo "not root: every test that needs network namespaces or AF_XDP is skipped and says so below"
  fi
  "${go_test[@]}" -p 1 -count=1 -timeout 15m -v ./e2e/...
}

# packages REGEX: the Go packages that match, without those that need the
# binaries.
packages() { go list ./... | grep -Ev '^pno/(e2e|bench/hotcalls|shim/conformance|shim/difffuzz)' | grep -E -- "${1:-.}"; }

all=(build format-vet unit race shim conformance difffuzz hotcalls provider arm64-build arm64-unit fuzz bench-once e2e)
selected=("$@")
((${#selected[@]} == 0)) && selected=("${all[@]}")
for name in "${selected[@]}"; do
  if ! declare -F "section_$name" >/dev/null; then
    echo "test.sh: no section $name; there are: ${all[*]}" >&2
    exit 2
  fi
done

scripts/deps.sh test || exit

# attempt NAME: a subshell with -e, so that a section ends at its first failing
# command and the loop below goes on.
attempt() (
  set -e
  "section_$1"
)

tries=${TEST_TRIES:-2}
passed=() failed=() flaky=() lines=()
begun=$SECONDS
for name in "${selected[@]}"; do
  start=$SECONDS
  for ((try = 1; try <= tries; try++)); do
    printf '\n=== %s%s\n' "$name" "$( ((try == 1)) || echo ", try $try")"
    attempt "$name"
    rc=$?
    ((rc == 0)) && break
  done
  took=$((SECONDS - start))
  verdict=ok
  if ((rc != 0)); then
    failed+=("$name")
    verdict=FAIL
  else
    passed+=("$name")
    if ((try > 1)); then
      flaky+=("$name")
      verdict=flaky
    fi
  fi
  lines+=("$(printf '%-5s %-12s %4ds' "$verdict" "$name" "$took")")
  printf -- '--- %s %s (%ds)\n' "$verdict" "$name" "$took"
done

printf '\n=== summary\n'
printf '%s\n' "${lines[@]}"
if ((${#failed[@]} > 0)); then
  printf 'failed: %s\n' "${failed[*]}"
fi
if ((${#flaky[@]} > 0)); then
  printf 'flaky, passed only when repeated: %s\n' "${flaky[*]}"
fi
total=$((SECONDS - begun))
printf 'took %dm%02ds\n' $((total / 60)) $((total % 60))
printf 'sections: %d passed, %d failed\n' "${#passed[@]}" "${#failed[@]}"
((${#failed[@]} == 0))
