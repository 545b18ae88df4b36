#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# deps.sh build|demo|test|suites|lint: makes sure that the programs a make target
# calls are there. Root installs what is missing with apt-get; anyone else is
# told the command. Nothing missing means nothing is done, not even a network
# request.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Each need is probe:package, where the probe is a command, or a file if it
# begins with a slash (a glob is allowed). Probing for what is used, not for
# the package, accepts a hand-built nginx and systems that are not Debian.
build_needs=(
  gcc:gcc
  make:make
  "/usr/include/stdio.h:libc6-dev"
  "/usr/include/openssl/evp.h:libssl-dev"
  "/etc/ssl/certs/ca-certificates.crt:ca-certificates"
)
demo_needs=(
  "${build_needs[@]}"
  nginx:nginx
  curl:curl
)
test_needs=(
  "${demo_needs[@]}"
  haproxy:haproxy
  redis-server:redis-server
  redis-benchmark:redis-tools
  wrk:wrk
  h2load:nghttp2-client
  ab:apache2-utils
  qemu-aarch64-static:qemu-user-static
  aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu
  "/usr/aarch64-linux-gnu/include/stdio.h:libc6-dev-arm64-cross"
  clang:clang
  llvm-symbolizer:llvm
  "/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan-*.a:libclang-rt-14-dev"
  ip:iproute2
  ethtool:ethtool
  promtool:prometheus
  strace:strace
  gcore:gdb
  valgrind:valgrind
  "/usr/include/valgrind/callgrind.h:valgrind"
  /usr/sbin/lighttpd:lighttpd
  /usr/sbin/apache2:apache2-bin
  /usr/bin/memcached:memcached
  /usr/bin/node:nodejs
  "/usr/lib/postgresql/*/bin/postgres:postgresql"
  "/usr/lib/postgresql/*/bin/pgbench:postgresql-contrib"
  varnishtest:varnish
  /usr/sbin/vsftpd:vsftpd
  /usr/sbin/sshd:openssh-server
  ssh:openssh-client
  "/usr/lib/python3.11/test/test_socket.py:libpython3.11-testsuite"
  "/usr/lib/python3/dist-packages/twisted/test/test_tcp.py:python3-twisted"
  "/usr/lib/python3/dist-packages/tornado/test/iostream_test.py:python3-tornado"
  "/usr/lib/python3/dist-packages/trio/tests/test_socket.py:python3-trio"
  "/usr/lib/python3/dist-packages/pytest/__init__.py:python3-pytest"
  jq:jq
  openssl:openssl
  "/usr/lib/softhsm/libsofthsm2.so:softhsm2"
  "/usr/bin/python3:python3"
  ps:procps
  systemd-analyze:systemd
  git:git
  unbound:unbound
  dnsmasq:dnsmasq-base
  dig:bind9-dnsutils
  /usr/sbin/gtlsserver:ngtcp2-server
  gtlsclient:ngtcp2-client
  "/usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream"
)
suites_needs=(
  "${test_needs[@]}"
  cmake:cmake
  dpkg-source:dpkg-dev
)
lint_needs=(shellcheck:shellcheck)

# The services that come with the packages above; see hold_services.
services=(nginx haproxy redis-server prometheus lighttpd memcached postgresql varnish varnishncsa vsftpd ssh unbound)

have() {
  case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
  esac
}

# The toolchain named in go.mod may be fetched by go itself; then this prints
# that version. It fails when go cannot provide one.
check_go() {
  local want got
  want=$(awk '$1 == "go" { print $2 }' go.mod)
  if ! command -v go >/dev/null; then
    local hint=
    [[ -x /usr/local/go/bin/go ]] && hint=" (found /usr/local/go/bin/go: add its directory to PATH)"
    echo "deps: go is not in PATH$hint; install Go $want or newer from https://go.dev/dl/" >&2
    return 1
  fi
  if ! got=$(go env GOVERSION 2>&1) || [[ $(printf '%s\n' "go$want" "$got" | sort -V | head -1) != "go$want" ]]; then
    echo "deps: go $want or newer is needed, this one says: $got" >&2
    echo "deps: install it from https://go.dev/dl/, or allow go to fetch it (go env -w GOTOOLCHAIN=auto)" >&2
    return 1
  fi
}

# A package that brings a service also starts it, on port 80 and the like. We
# want the programs only, so that is refused while apt-get runs: dpkg asks
# policy-rc.d, whose answer 101 means no.
policy=/usr/sbin/policy-rc.d
hold_services() {
  [[ -e $policy.pno-saved ]] && mv -f "$policy.pno-saved" "$policy" # from a run that was killed
  if [[ -x $policy ]]; then
    local rc=0
    "$policy" nginx start >/dev/null 2>&1 || rc=$?
    ((rc == 101)) && return
  fi
  if [[ -e $policy ]]; then
    mv "$policy" "$policy.pno-saved"
  fi
  trap release_services EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
}
release_services() {
  rm -f "$policy"
  if [[ -e $policy.pno-saved ]]; then
    mv "$policy.pno-saved" "$policy"
  fi
}

# A service that we brought must not appear at the next boot either.
disable_services() {
  command -v systemctl >/dev/null || return 0
  local package service
  for package in "$@"; do
    for service in "${services[@]}"; do
      if [[ $package == "$service" ]]; then
        systemctl --quiet disable "$service" || echo "deps: could not disable $service; it starts at the next boot" >&2
      fi
    done
  done
}

apt=(apt-get -qq -o DPkg::Lock::Timeout=300)

# The lock timeout covers dpkg's locks, not the one on the package lists.
apt_update() {
  local try
  for try in 1 2 3 4 5 6; do
    "${apt[@]}" update && return
    echo "deps: apt-get update failed (try $try)" >&2
    sleep 5
  done
  echo "deps: going on with the package lists that are there" >&2
}

install_packages() {
  echo "deps: installing $*"
  hold_services
  apt_update
  DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null
  disable_services "$@"
}

group=${1:-}
case $group in
  build) needs=("${build_needs[@]}") ;;
  demo) needs=("${demo_needs[@]}") ;;
  test) needs=("${test_needs[@]}") ;;
  suites) needs=("${suites_needs[@]}") ;;
  lint) needs=("${lint_needs[@]}") ;;
  *)
    echo "usage: $0 build|demo|test|suites|lint" >&2
    exit 2
    ;;
esac

check_go

packages=()
for need in "${needs[@]}"; do
  have "${need%%:*}" || packages+=("${need##*:}")
done
((${#packages[@]} == 0)) && exit 0

if ! command -v apt-get >/dev/null; then
  echo "deps: missing, by their Debian names: ${packages[*]}; install them with this system's package manager" >&2
  exit 1
fi
if ((EUID != 0)); then
  echo "deps: missing: ${packages[*]}; install them with:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}" >&2
  exit 1
fi
install_packages "${packages[@]}"
