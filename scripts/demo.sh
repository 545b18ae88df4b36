#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Stock nginx behind a simulated DPU, with curl as an ordinary client on
# loopback. ONCE=1 exits after the checks; otherwise it stays up until Ctrl-C.
# PORT is the first loopback port to try (8080).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=${BIN:-$PWD/bin}
PATH=$PATH:/usr/sbin
inside=198.18.0.2:80
megabytes=10

say() { printf 'demo: %s\n' "$*"; }

work=$(mktemp -d)
sim=
stop() {
  # The simulator passes the signal on, and takes everything down after nginx.
  if [[ -n $sim ]] && kill -TERM "$sim" 2>/dev/null; then
    for ((i = 0; i < 100; i++)); do
      kill -0 "$sim" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$sim" 2>/dev/null && say "the simulator did not stop within 10 s and was killed"
  fi
  [[ -z $sim ]] || wait "$sim" 2>/dev/null || true
  sim=
}
cleanup() {
  stop
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
  say "FAILED: $*"
  if [[ -s $work/sim.log ]]; then
    echo "--- the last lines of the simulator and nginx:"
    tail -n 20 "$work/sim.log"
  fi
  exit 1
}

free_port() {
  local port
  for ((port = ${PORT:-8080}; port < ${PORT:-8080} + 100; port++)); do
    if ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
  return 1
}

hash_of() { sha256sum "$1" | cut -d' ' -f1; }

# fetch NAME: through the published port, and as it is on disk.
fetch() {
  local want got
  curl -sS --max-time 60 -o "$work/fetched" \
    -w "demo: GET /$1: %{http_code}, %{size_download} bytes in %{time_total} s\n" "$url/$1" || fail "curl could not fetch /$1"
  want=$(hash_of "$work/www/$1")
  got=$(hash_of "$work/fetched")
  [[ $got == "$want" ]] || fail "/$1 arrived with SHA-256 $got, not $want"
  say "    SHA-256 $got, as on disk"
}

# counter NAME: a number from the statistics that the simulator wrote at exit.
counter() { sed -n 's/.*"'"$1"'": *\([0-9][0-9]*\).*/\1/p' "$work/stats.json" | head -1; }

mkdir -p "$work/www" "$work/tmp"
cat >"$work/www/index.html" <<'HTML'
<!doctype html>
<title>pno</title>
<h1>It works</h1>
<p>This page came from an unmodified nginx whose TCP connections live on a (simulated) DPU.</p>
HTML
head -c $((megabytes << 20)) /dev/urandom >"$work/www/file.bin"

# As root nginx would give its workers another user, who cannot read here.
user=
((EUID == 0)) && user='user root;'
cat >"$work/nginx.conf" <<CONF
daemon off;
$user
worker_processes 2;
pid $work/nginx.pid;
error_log stderr warn;
events { worker_connections 512; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path $work/tmp/body;
  proxy_temp_path $work/tmp/proxy;
  fastcgi_temp_path $work/tmp/fastcgi;
  uwsgi_temp_path $work/tmp/uwsgi;
  scgi_temp_path $work/tmp/scgi;
  types { text/html html; }
  default_type application/octet-stream;
  server {
    listen $inside;
    root $work/www;
  }
}
CONF

port=$(free_port) || fail "no free loopback port from ${PORT:-8080} on; set PORT"
url=http://127.0.0.1:$port

# The simulator tells the program in PNO_… variables where its daemons listen;
# offloadctl, outside, is given the same ones.
# shellcheck disable=SC2016
"$bin/pno" sim --publish "127.0.0.1:$port=$inside" --stats "$work/stats.json" -- \
  bash -c 'for v in ${!PNO_@}; do printf "%s=%s\n" "$v" "${!v}"; done >"$0"; exec "$@"' "$work/env" \
  nginx -e stderr -p "$work" -c "$work/nginx.conf" >"$work/sim.log" 2>&1 &
sim=$!

for ((i = 0; ; i++)); do
  curl -sf --max-time 5 -o /dev/null "$url/index.html" && break
  kill -0 "$sim" 2>/dev/null || fail "the simulator or nginx ended at once"
  ((i < 100)) || fail "no answer on $url within 20 s"
  sleep 0.2
done
say "$(nginx -v 2>&1 | sed 's/.*: //') listens on $inside behind the simulated DPU, published as $url"

fetch index.html
fetch file.bin

mapfile -t environment <"$work/env"
say "offloadctl stats:"
env "${environment[@]}" "$bin/offloadctl" stats || fail "offloadctl could not read the statistics"

if [[ -z ${ONCE:-} ]]; then
  say "up at $url until Ctrl-C; in another terminal:"
  say "    env ${environment[*]} $bin/offloadctl stats --watch"
  wait "$sim" || true
  exit
fi

stop
sockets=$(counter sockets_offloaded)
sent=$(counter bytes_tx)
[[ ${sockets:-0} -gt 0 ]] || fail "no socket was offloaded: the bytes came through the kernel"
[[ ${sent:-0} -ge $((megabytes << 20)) ]] || fail "only ${sent:-0} bytes went through the offload"
say "OK: $sockets sockets and $sent bytes went through the offload, hashes equal"
