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


def listener(port, **options):
    l = socket.socket()
    l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for name, value in options.items():
        l.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    l.bind((HOST, port))
    l.listen()
    return l


def fill(s):
    """How much a writer gets rid of while nobody reads."""
    s.setblocking(False)
    n = 0
    try:
        while True:
            n += s.send(b"x" * 512)
            if n % 8192 == 0:
                time.sleep(0.01)
    except BlockingIOError:
        return n


def writable(s):
    return bool(select.select([], [s], [], 0)[1])


def settle(s):
    """The same, until nothing moves any more: a probe of a closed window may open it late."""
    n, idle, end = 0, 0, time.monotonic() + 10
    while idle < 3 or writable(s) and time.monotonic() < end:
        more = fill(s)
        n, idle = n + more, 0 if more else idle + 1
        time.sleep(0.1)
    return n


def buffers():
    """Small buffers bound what is under way, whoever set them, and all of it arrives."""
    for small in (4096, 32768):
        l = listener(7310, SO_RCVBUF=small)
        c = socket.socket()
        c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, small)
        c.connect((HOST, 7310))
        s, _ = l.accept()
        say("read back", (c.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)))
        n = settle(c)
        say(f"under way with {small}", "bounded" if small < n < 8 * small else n)
        say("writable", writable(c))
        c.setblocking(True)
        c.shutdown(socket.SHUT_WR)
        got = 0
        while more := len(s.recv(65536)):
            got += more
        say("arrived", got == n)
        l.close()
    c, l = command("echo"), listener(7311)
    for size in (1, 3000, 1 << 30):
        c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        c.sendall(b"still alive")
        say(f"{size} bytes", c.recv(11, socket.MSG_WAITALL))


def inherited():
    """A connection has its listener's options, and its own."""
    l = listener(7312, SO_KEEPALIVE=1)
    l.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    l.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b"\2" + b"\0" * 15)
    c = socket.create_connection((HOST, 7312))
    s, _ = l.accept()
    read = lambda s: [s.getsockopt(*o) for o in [(1, socket.SO_KEEPALIVE), (6, socket.TCP_NODELAY), (6, socket.TCP_KEEPIDLE)]] + [
        s.getsockopt(1, socket.SO_RCVTIMEO, 16)]
    say("accepted", read(s))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    say("changed", read(s))
    say("the listener", read(l))
    l.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 88)
    c2 = socket.create_connection((HOST, 7312))
    say("the next one", read(l.accept()[0]))
    say("the first one", read(s))
    for value in (0, 40000):
        attempt(f"TCP_KEEPIDLE {value}", s.setsockopt, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, value)
    attempt("short value", s.setsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY, b"\1\0")
    begin = time.monotonic()
    attempt("recv", s.recv, 1)
    say("in time", 1 < time.monotonic() - begin < 8)
    c.close(), c2.close()


def spread():
    """Sockets of one port share its connections."""
    first, second = listener(7313, SO_REUSEPORT=1), listener(7313, SO_REUSEPORT=1)
    clients = [socket.create_connection((HOST, 7313)) for _ in range(64)]
    got = {first: 0, second: 0}
    while sum(got.values()) < len(clients):
        ready = select.select([first, second], [], [], 5)[0]
        if not ready:
            break
        for l in ready:
            l.accept()[0].close()
            got[l] += 1
    say("connections", sum(got.values()))
    say("spread", min(got.values()) > 8)
    alone = socket.socket()
    attempt("bind without SO_REUSEPORT", alone.bind, (HOST, 7313))
    for c in clients:
        c.close()


def states():
    """What a socket says of itself."""
    state = lambda s: s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
    l = listener(7314)
    s = socket.socket()
    say("new", (state(s), s.getsockopt(1, socket.SO_ACCEPTCONN)))
    say("listening", (state(l), l.getsockopt(1, socket.SO_ACCEPTCONN)))
    s.connect((HOST, 7314))
    c, _ = l.accept()
    say("connected", (state(s), state(c)))
    c.shutdown(socket.SHUT_WR)
    s.recv(1)
    say("half closed", (state(s), state(c) in (4, 5)))
    attempt("reno", c.setsockopt, 6, socket.TCP_CONGESTION, b"reno")
    say("now", c.getsockopt(6, socket.TCP_CONGESTION, 16).rstrip(b"\0"))
    attempt("SO_ORIGINAL_DST", c.getsockopt, socket.IPPROTO_IP, 80, 16)
    say("SO_PEERCRED", c.getsockopt(1, socket.SO_PEERCRED, 12))
    for s in (s, c):
        say("MTU", s.getsockopt(socket.IPPROTO_IP, 14) >= 1500)
        say("TCP_MAXSEG", s.getsockopt(6, socket.TCP_MAXSEG) >= 1400)


for case in {"values": [buffers, inherited, spread, states], "unserved": [unserved], "acting": [defer_accept, free_bind, receive_low_water, dead_peer]}[sys.argv[3]]:
    case()
