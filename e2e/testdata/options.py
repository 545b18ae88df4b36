#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# options.py HOST PEER: whether socket options do what they say. What nobody
# serves must be refused; what is accepted must act. PEER runs the suite's
# scripted server on port 7000; it cuts the wire once we say "cut".
import errno
import select
import socket
import sys
import time

HOST, PEER = sys.argv[1], sys.argv[2]


def say(what, answer):
    print(f"{what}: {answer}", flush=True)


def attempt(what, fn, *args):
    try:
        fn(*args)
        say(what, "ok")
    except OSError as e:
        say(what, errno.errorcode.get(e.errno, str(e)))


def command(line):
    s = socket.create_connection((PEER, 7000), 10)
    s.settimeout(None)
    s.sendall(line.encode() + b"\n")
    return s


def unserved():
    """The DPU's stack knows nothing of these: silence would be a lie."""
    for name, number in [("TCP_FASTOPEN", 23), ("TCP_NOTSENT_LOWAT", 25), ("TCP_SAVE_SYN", 27), ("TCP_FASTOPEN_CONNECT", 30)]:
        s = command("echo")
        attempt(name, s.setsockopt, socket.IPPROTO_TCP, number, 1)
    s = command("echo")
    attempt("TCP_ULP", s.setsockopt, socket.IPPROTO_TCP, 31, b"tls")
    attempt("SO_MARK", s.setsockopt, socket.SOL_SOCKET, 36, 7)
    attempt("SO_ATTACH_FILTER", s.setsockopt, socket.SOL_SOCKET, 26, b"\0" * 16)
    attempt("unknown congestion control", s.setsockopt, socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"nosuch")


def defer_accept():
    l = socket.socket()
    l.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3)
    l.bind((HOST, 7300))
    l.listen()
    l.settimeout(5)
    command("dial-later 7300").close()
    begin = time.monotonic()
    c, _ = l.accept()
    say("deferred until there was data", time.monotonic() - begin > 0.3)
    say("the data", c.recv(6, socket.MSG_WAITALL | socket.MSG_DONTWAIT))


def free_bind():
    s = socket.socket()
    try:
        s.setsockopt(socket.IPPROTO_IP, 15, 1)
    except OSError:
        say("IP_FREEBIND", "refused, or it acts")
        return
    try:
        s.bind(("198.18.0.77", 7301))
        say("IP_FREEBIND", "refused, or it acts")
    except OSError as e:
        say("IP_FREEBIND", "accepted, and then " + errno.errorcode[e.errno])


def receive_low_water():
    s = command("slowly 10")
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    p = select.poll()
    p.register(s, select.POLLIN)
    p.poll(5000)
    say("SO_RCVLOWAT", len(s.recv(100)))


def dead_peer():
    keep = command("silent")
    keep.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    keep.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    keep.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    keep.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    user = command("silent")
    user.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
    print("cut", flush=True)
    time.sleep(1)
    user.send(b"into the void")
    for what, s in (("TCP_USER_TIMEOUT", user), ("keep-alive", keep)):
        begin = time.monotonic()
        s.settimeout(15)
        try:
            s.recv(1)
            say(what, "end")
        except TimeoutError as e:
            say(what, "ETIMEDOUT" if e.errno else "nothing happened")
        except OSError as e:
            say(what, errno.errorcode[e.errno])
        say("in time", time.monotonic() - begin < 10)


for case in {"unserved": [unserved], "acting": [defer_accept, free_bind, receive_low_water, dead_peer]}[sys.argv[3]]:
    case()
