#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# udp.py HOST PEER: what calls on datagram sockets do, as a transcript that is
# the same on the kernel's sockets and on offloaded ones. On port 7000 of PEER
# somebody answers each datagram: "many N" with N datagrams of falling length,
# "other" with one from another port, anything else with itself.
import array
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import time

HOST, PEER = sys.argv[1], sys.argv[2]
V6 = ":" in HOST
FAMILY = socket.AF_INET6 if V6 else socket.AF_INET
ANY = "::" if V6 else "0.0.0.0"
IP = socket.IPPROTO_IPV6 if V6 else socket.IPPROTO_IP
SERVER = (PEER, 7000)


def say(what, answer):
    print(f"  {what}: {answer}", flush=True)


def attempt(what, fn, *args):
    try:
        say(what, fn(*args))
    except OSError as e:
        say(what, errno.errorcode.get(e.errno, str(e)))


def new(local=None, *options):
    s = socket.socket(FAMILY, socket.SOCK_DGRAM)
    for o in options:
        s.setsockopt(*o)
    if local is not None:
        s.bind((local, 0))
    s.settimeout(5)
    return s


def at_once(s, *args):
    s.setblocking(False)
    try:
        return s.recv(*args)
    finally:
        s.settimeout(5)


def readable(s, timeout=5000):
    p = select.poll()
    p.register(s, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    end = time.monotonic() + timeout / 1000
    while True:
        got = p.poll(100)
        if got and got[0][1] & ~select.POLLOUT or time.monotonic() > end:
            return got[0][1] if got else 0


def connected():
    s = new()
    say("fresh name", s.getsockname()[:2])
    attempt("fresh peer", s.getpeername)
    attempt("send without destination", s.send, b"x")
    s.connect(SERVER)
    say("name", s.getsockname()[0])
    say("has a port", s.getsockname()[1] > 0)
    say("peer", s.getpeername()[:2])
    say("type", (s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), s.proto))
    for n in (0, 1, 1200, 1473, 8000, 30000, 40000):
        s.send(bytes([n % 251]) * n)
        d, a = s.recvfrom(65536)
        say(f"echo of {n}", (len(d), d[:1] == bytes([n % 251])[: n and 1], a[:2] == SERVER))
    s.sendto(b"with address", SERVER)
    say("sendto on connected", s.recv(100))
    port = s.getsockname()[1]
    s.connect((PEER, 7001))
    say("same port after another connect", s.getsockname()[1] == port)
    s.close()
    attempt("closed", s.send, b"x")


def boundaries():
    s = new()
    s.connect(SERVER)
    s.send(b"many 5")
    say("lengths", [len(s.recv(65536)) for _ in range(5)])
    s.send(b"0123456789")
    readable(s)
    n = array.array("i", [0])
    fcntl.ioctl(s, termios.FIONREAD, n)
    say("FIONREAD", n[0])
    say("peek", s.recv(4, socket.MSG_PEEK))
    say("peek whole length", s.recv_into(bytearray(4), 4, socket.MSG_PEEK | socket.MSG_TRUNC))
    d, _, flags, _ = s.recvmsg(4)
    say("cut", (d, flags & socket.MSG_TRUNC != 0))
    attempt("the rest is gone", at_once, s, 10)
    s.sendmsg([b"ab", b"", b"cde"])
    parts = [bytearray(2), bytearray(2), bytearray(9)]
    n, _, flags, a = s.recvmsg_into(parts)
    say("scattered", (n, bytes(parts[0]), bytes(parts[1]), bytes(parts[2][:1]), flags, a[:2] == SERVER))
    s.send(b"")
    readable(s)
    fcntl.ioctl(s, termios.FIONREAD, (n := array.array("i", [7])))
    say("FIONREAD of nothing", n[0])
    say("nothing", s.recv(10))
    os.write(s.fileno(), b"written")
    readable(s)
    say("read", os.read(s.fileno(), 3))
    attempt("read on", at_once, s, 10)


def lengths():
    s = new()
    most = 65527 if V6 else 65507
    attempt("too long", s.sendto, b"x" * (most + 1), SERVER)
    s.setsockopt(IP, 23 if V6 else 10, 2)  # MTU_DISCOVER, DO
    s.connect(SERVER)
    say("MTU", s.getsockopt(IP, 24 if V6 else 14))
    attempt("beyond the MTU", s.send, b"x" * 1500)
    attempt("within", s.send, b"x" * 1400)
    say("came back", len(s.recv(65536)))


def refused():
    s = new()
    s.connect((PEER, 9))
    s.send(b"anybody?")
    say("events", readable(s))
    say("SO_ERROR", s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED)
    attempt("then", at_once, s, 10)
    s.send(b"anybody?")
    attempt("recv", s.recv, 10)
    s.send(b"anybody?")
    readable(s)
    attempt("send", s.send, b"again")
    s.connect(SERVER)
    s.send(b"somebody")
    say("elsewhere", s.recv(100))
    u = new()
    u.sendto(b"anybody?", (PEER, 9))
    time.sleep(0.2)
    attempt("unconnected hears nothing", at_once, u, 10)


def no_route():
    """The kernel knows at once; the DPU by the time of the next attempt."""
    s = new()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            s.sendto(b"x", ("2001:db8::1" if V6 else "203.0.113.1", 9))
            time.sleep(0.05)
        except OSError as e:
            say("sendto", errno.errorcode[e.errno])
            break
    s.sendto(b"elsewhere", SERVER)
    say("others", s.recv(100))
    attempt("connect", new().connect, ("2001:db8::1" if V6 else "203.0.113.1", 9))


def stranger():
    s = new()
    s.connect(SERVER)
    s.send(b"other")
    s.send(b"mine")
    say("only the peer's", s.recv(100))
    attempt("no more", at_once, s, 100)
    u = new()
    u.sendto(b"other", SERVER)
    d, a = u.recvfrom(100)
    say("from another port", (d, a[0], a[1] != 7000))


def disconnect():
    for local in ((ANY, 0), (ANY, 6123), (HOST, 6124)):
        disconnect_from(*local)


def disconnect_from(address, port):
    say("from", (address, port))
    s = new()
    s.bind((address, port))
    s.connect(SERVER)
    say("address while connected", s.getsockname()[0])
    libc_connect(s, struct.pack("=H14x", socket.AF_UNSPEC))
    attempt("peer", s.getpeername)
    say("name", s.getsockname()[:2])
    attempt("send", s.send, b"x")
    s.sendto(b"other", SERVER)
    say("hears everybody", s.recv(100))


def libc_connect(s, address):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(s.fileno(), address, len(address)) < 0:
        raise OSError(ctypes.get_errno(), "connect")


def names():
    s = new(HOST)
    say("bound", (s.getsockname()[0], s.getsockname()[1] > 0))
    attempt("twice", s.bind, (HOST, 0))
    attempt("taken", new().bind, s.getsockname()[:2])
    attempt("foreign address", new().bind, ("2001:db8::1" if V6 else "203.0.113.1", 0))
    attempt("listen", s.listen)
    s.setblocking(True)
    attempt("accept", s.accept)
    a = new()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    a.bind((HOST, 0))
    b = new()
    b.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    attempt("reuse address", b.bind, a.getsockname()[:2])
    attempt("port 0", s.sendto, b"x", (PEER, 0))


def control():
    pktinfo, recvtos, recvttl = (49, 66, 51) if V6 else (8, 13, 12)
    s = new(ANY, (IP, pktinfo, 1), (IP, recvtos, 1), (IP, recvttl, 1))
    s.setsockopt(IP, 67 if V6 else 1, 0x48)  # TCLASS, TOS
    s.setsockopt(IP, 16 if V6 else 2, 33)  # UNICAST_HOPS, TTL
    s.sendto(b"marked", SERVER)
    d, anc, flags, a = s.recvmsg(100, 500)
    for level, kind, data in sorted(anc):
        if kind in (8, 50):
            say("pktinfo", socket.inet_ntop(FAMILY, data[:16] if V6 else data[8:12]))
        else:
            say(f"control {level} {kind}", data[0])
    _, anc, flags, _ = again(s, 20)
    say("no room", (len(anc), flags & socket.MSG_CTRUNC != 0))
    # The source address, the class and the hop limit of one datagram.
    if V6:
        info, tos, ttl = (50, socket.inet_pton(FAMILY, HOST) + bytes(4)), 67, 52
    else:
        info, tos, ttl = (8, bytes(4) + socket.inet_aton(HOST) + bytes(4)), 1, 2
    anc = [(IP, info[0], info[1]), (IP, tos, struct.pack("i", 4)), (IP, ttl, struct.pack("i", 9))]
    say("sent", s.sendmsg([b"tell"], anc, 0, SERVER))
    say("it came", s.recv(100))
    if V6:
        foreign = (50, socket.inet_pton(FAMILY, "2001:db8::7") + bytes(4))
    else:
        foreign = (8, bytes(4) + socket.inet_aton("203.0.113.7") + bytes(4))
    attempt("foreign source", s.sendmsg, [b"x"], [(IP, *foreign)], 0, SERVER)
    attempt("bad TTL", s.sendmsg, [b"x"], [(IP, ttl, struct.pack("i", 999))], 0, SERVER)
    attempt("short control", s.sendmsg, [b"x"], [(IP, ttl, b"xx")], 0, SERVER)


def again(s, room):
    s.sendto(b"again", SERVER)
    return s.recvmsg(100, room)


def readiness():
    s = new()
    s.connect(SERVER)
    s.setblocking(False)
    attempt("empty", s.recv, 10)
    e = select.epoll()
    e.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    say("writable", e.poll(1) == [(s.fileno(), select.EPOLLOUT)])
    s.send(b"many 2")
    time.sleep(0.3)
    say("edge", [m & select.EPOLLIN for _, m in e.poll(1)])
    say("no second edge", e.poll(0.1))
    say("both", (len(s.recv(100)), len(s.recv(100))))
    r, w, x = select.select([s], [s], [s], 0.1)
    say("select", (len(r), len(w), len(x)))
    s.send(b"again")
    r, w, x = select.select([s], [], [], 5)
    say("select readable", len(r))
    d = s.dup()
    s.close()
    say("copy", d.recv(100))
    d.settimeout(0.2)
    attempt("timeout", d.recv, 10)
    d.send(b"x")
    readable(d)
    say("poll", readable(d))


def shut():
    s = new()
    attempt("unconnected", s.shutdown, socket.SHUT_RD)
    s = new()
    s.connect(SERVER)
    s.shutdown(socket.SHUT_RD)
    attempt("recv at once", at_once, s, 10)
    s.setblocking(True)
    say("recv", s.recv(10))
    say("poll", readable(s))
    s.send(b"still")
    s.shutdown(socket.SHUT_WR)
    attempt("send", s.send, b"no")


def spread():
    """Two sockets on one port: each client's datagrams go to one of them."""
    pair = [new(), new()]
    port = 0
    for s in pair:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind((HOST, port))
        port = s.getsockname()[1]
    client = new()
    for _ in range(20):
        client.sendto(f"to {port} 4".encode(), SERVER)
    got = [0, 0]
    end = time.monotonic() + 10
    while sum(got) < 80 and time.monotonic() < end:
        for s in select.select(pair, [], [], 0.2)[0]:
            s.recv(100)
            got[pair.index(s)] += 1
    say("all", sum(got))
    say("spread", min(got) > 0)


def child():
    """A child of a fork goes on with the socket, and so does its parent."""
    s = new()
    s.connect(SERVER)
    s.send(b"before")
    say("before", s.recv(100))
    pid = os.fork()
    if not pid:
        s.send(b"from the child")
        say("child", s.recv(100))
        os._exit(0)
    os.waitpid(pid, 0)
    s.send(b"after")
    say("parent", s.recv(100))


def sent_over():
    """A socket that another process gets by SCM_RIGHTS."""
    a, b = socket.socketpair()
    pid = os.fork()
    if not pid:
        a.close()
        _, fds, _, _ = socket.recv_fds(b, 10, 1)
        s = socket.socket(fileno=fds[0])
        s.settimeout(5)
        s.sendto(b"over there", SERVER)
        say("receiver", s.recv(100))
        os._exit(0)
    s = new(HOST)
    socket.send_fds(a, [b"x"], [s.fileno()])
    os.waitpid(pid, 0)
    s.sendto(b"over here", SERVER)
    say("sender", s.recv(100))


def over_exec():
    """A socket that outlives the program that made it."""
    if "AFTER_EXEC" in os.environ:
        s = socket.socket(fileno=int(os.environ["AFTER_EXEC"]))
        s.settimeout(5)
        s.sendto(b"after exec", SERVER)
        say("after", (s.recv(100), s.getsockname()[0]))
        return
    s = new(HOST)
    s.sendto(b"before exec", SERVER)
    say("before", s.recv(100))
    os.set_inheritable(s.fileno(), True)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.environ["AFTER_EXEC"] = str(s.fileno())
        os.execv(sys.executable, [sys.executable, "-u", __file__, HOST, PEER, "over_exec"])
    os.waitpid(pid, 0)


CASES = [connected, boundaries, lengths, refused, no_route, stranger, disconnect, names, control, readiness, shut, spread, child, sent_over, over_exec]
for case in CASES:
    if len(sys.argv) > 3 and case.__name__ not in sys.argv[3:]:
        continue
    print(case.__name__, flush=True)
    case()
