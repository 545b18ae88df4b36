#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# probe.py HOST PEER: what the socket calls answer, step by step, in words. The
# suite runs it with kernel sockets and under the shim and compares the output.
# PEER runs the suite's scripted server (see errno_test.go) on port 7000, and
# nothing on port 7001.
import array
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time

HOST, PEER = sys.argv[1], sys.argv[2]
SERVER, NOTHING = (PEER, 7000), (PEER, 7001)
NOBODY, NO_ROUTE = ("198.18.0.99", 7000), ("203.0.113.1", 7000)

POLL_NAMES = [(getattr(select, n), n) for n in ("POLLIN", "POLLPRI", "POLLOUT", "POLLERR", "POLLHUP", "POLLNVAL", "POLLRDHUP")]
ALL = select.POLLIN | select.POLLOUT | select.POLLRDHUP
CASES = []


def case(fn):
    CASES.append(fn)
    return fn


def say(what, answer):
    print(f"  {what}: {answer}", flush=True)


def attempt(what, fn, *args, show=True):
    """Calls fn and says what came of it; returns the result or None."""
    try:
        result = fn(*args)
    except OSError as e:
        name = "timed out" if isinstance(e, TimeoutError) and e.errno is None else errno.errorcode.get(e.errno, str(e))
        say(what, name)
        return None
    say(what, (result if not isinstance(result, (socket.socket, tuple)) else "ok") if show and result is not None else "ok")
    return result


def tcp(blocking=True):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setblocking(blocking)
    return s


def names(mask):
    return "|".join(n for bit, n in POLL_NAMES if mask & bit) or "nothing"


def polled(s, wait=0, events=ALL):
    p = select.poll()
    p.register(s, events)
    got = p.poll(wait)
    return names(got[0][1]) if got else "nothing"


def settled(s, want, wait=3.0):
    """Polls until the bits of want are there: arrival takes time, here and there."""
    end = time.monotonic() + wait
    p = select.poll()
    p.register(s, ALL)
    while time.monotonic() < end:
        got = p.poll(0)
        if got and got[0][1] & want == want:
            break
        time.sleep(0.002)
    return polled(s)


def so_error(s):
    n = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode.get(n, n)


def command(line, blocking=True):
    s = tcp()
    s.settimeout(10)
    s.connect(SERVER)
    s.sendall(line.encode() + b"\n")
    s.setblocking(blocking)
    return s


def listener(port, backlog=16):
    s = tcp()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((HOST, port))
    s.listen(backlog)
    return s


@case
def fresh_socket():
    s = tcp()
    attempt("recv", s.recv, 10)
    attempt("send", s.send, b"x")
    attempt("getpeername", s.getpeername)
    say("getsockname", s.getsockname())
    attempt("shutdown", s.shutdown, socket.SHUT_RDWR)
    attempt("accept", s.accept)
    say("poll", polled(s))
    say("SO_ERROR", so_error(s))


@case
def bind_errors():
    a, b = tcp(), tcp()
    attempt("bind", a.bind, (HOST, 7100))
    attempt("bind again", a.bind, (HOST, 7101))
    attempt("bind the same port", b.bind, (HOST, 7100))
    attempt("listen", a.listen)
    attempt("bind the listening port", b.bind, (HOST, 7100))
    b.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    attempt("bind the listening port, SO_REUSEADDR", b.bind, (HOST, 7100))
    attempt("bind any address, same port", b.bind, ("0.0.0.0", 7100))
    attempt("bind an address that is not ours", b.bind, ("198.18.0.77", 7102))
    a.close()
    attempt("bind after close", b.bind, (HOST, 7100))
    attempt("listen after close", b.listen)


@case
def bind_port_zero():
    s = tcp()
    s.bind((HOST, 0))
    say("port chosen", s.getsockname()[1] > 1023)
    s.listen()
    say("listening", s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


@case
def listening_socket():
    s = listener(7103)
    s.setblocking(False)
    attempt("accept", s.accept)
    attempt("recv", s.recv, 1)
    attempt("send", s.send, b"x")
    attempt("connect", s.connect, SERVER)
    attempt("getpeername", s.getpeername)
    say("poll", polled(s))
    attempt("shutdown for writing", s.shutdown, socket.SHUT_WR)
    say("poll", polled(s))
    waiting = command("await 7103")
    settled(s, select.POLLIN)
    attempt("shutdown", s.shutdown, socket.SHUT_RD)
    say("who waited to be accepted", waiting.recv(100))
    attempt("accept after shutdown", s.accept)
    say("poll", polled(s))
    say("listening", s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    c = command("try 7103")
    say("who comes", c.recv(100))
    attempt("listen again", s.listen, 5)
    say("listening", s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    c = command("try 7103")
    say("who comes", c.recv(100))
    say("poll", settled(s, select.POLLIN))
    attempt("accept", s.accept)
    libc = ctypes.CDLL(None, use_errno=True)
    say("connect to nothing (AF_UNSPEC)", libc.connect(s.fileno(), bytes(16), 16))
    say("listening", s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    attempt("listen again", s.listen, 5)
    c = command("try 7103")
    say("who comes", c.recv(100))


@case
def refused():
    s = tcp()
    attempt("connect", s.connect, NOTHING)
    say("poll", polled(s))
    say("SO_ERROR", so_error(s))
    attempt("send", s.send, b"x")
    attempt("recv", s.recv, 1)


@case
def refused_without_blocking():
    s = tcp(False)
    attempt("connect", s.connect, NOTHING)
    say("poll", polled(s, 3000))
    say("SO_ERROR", so_error(s))
    say("SO_ERROR again", so_error(s))
    attempt("recv", s.recv, 1)
    attempt("send", s.send, b"x")
    s = tcp(False)
    attempt("second connect", s.connect, NOTHING)
    polled(s, 3000)
    attempt("connect tells", s.connect, NOTHING)


@case
def refused_epoll():
    s = tcp(False)
    ep = select.epoll()
    ep.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    time.sleep(0.01)
    say("before connect", [names(m) for _, m in ep.poll(0)])
    attempt("connect", s.connect, NOTHING)
    time.sleep(0.1)
    say("after", [names(m) for _, m in ep.poll(3)])
    say("edge is over", [names(m) for _, m in ep.poll(0.05)])


@case
def unreachable():
    s = tcp()
    s.settimeout(10)
    attempt("no route", s.connect, NO_ROUTE)
    for _ in range(2):
        s = tcp(False)
        attempt("no route, and no waiting", s.connect, NO_ROUTE)
        say("SO_ERROR", so_error(s))
        say("poll", polled(s))
    s = tcp()
    s.settimeout(10)
    attempt("nobody there", s.connect, NOBODY)
    say("SO_ERROR", so_error(s))


@case
def connecting():
    s = tcp(False)
    attempt("connect", s.connect, NOBODY)
    attempt("connect again", s.connect, NOBODY)
    attempt("recv", s.recv, 1)
    attempt("send", s.send, b"x")
    attempt("getpeername", s.getpeername)
    say("poll", polled(s))
    ep = select.epoll()
    ep.register(s, ALL)
    say("epoll", [names(m) for _, m in ep.poll(0.05)])


@case
def connected():
    s = command("echo")
    say("getpeername", s.getpeername())
    say("own address", s.getsockname()[0])
    attempt("connect again", s.connect, SERVER)
    say("SO_TYPE", s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE))
    say("SO_DOMAIN", s.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN))
    say("SO_PROTOCOL", s.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
    say("SO_ACCEPTCONN", s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    say("TCP_INFO state", s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)[0])
    s.sendall(b"hello\n")
    say("readable", settled(s, select.POLLIN))
    n = array.array("i", [0])
    fcntl.ioctl(s, termios.FIONREAD, n)
    say("FIONREAD", n[0])
    say("peek", s.recv(3, socket.MSG_PEEK))
    say("peek all", s.recv(100, socket.MSG_PEEK))
    say("read two", s.recv(2))
    say("drop one (MSG_TRUNC)", len(s.recv(1, socket.MSG_TRUNC)))
    say("rest", s.recv(100))
    attempt("MSG_DONTWAIT", s.recv, 1, socket.MSG_DONTWAIT)
    attempt("MSG_OOB", s.recv, 1, socket.MSG_OOB)
    say("recv of nothing", s.recv(0))
    say("send of nothing", s.send(b""))
    attempt("listen", s.listen)


@case
def vectors():
    s = command("echo")
    say("sendmsg", s.sendmsg([b"ab", b"", b"cdef", b"\n"]))
    settled(s, select.POLLIN)
    bufs = [bytearray(3), bytearray(2), bytearray(10)]
    n, anc, flags, _ = s.recvmsg_into(bufs)
    say("recvmsg", (n, bufs[0], bufs[1], bufs[2][:2], anc, flags))
    say("writev", os.writev(s.fileno(), [b"12", b"345\n"]))
    settled(s, select.POLLIN)
    bufs = [bytearray(4), bytearray(4)]
    say("readv", (os.readv(s.fileno(), bufs), bufs[0], bufs[1][:2]))
    say("write", os.write(s.fileno(), b"w\n"))
    settled(s, select.POLLIN)
    say("read", os.read(s.fileno(), 10))


@case
def wait_for_all():
    s = command("slowly 10")
    say("MSG_WAITALL", s.recv(10, socket.MSG_WAITALL))
    s = command("echo")
    s.sendall(b"part\n")
    s.shutdown(socket.SHUT_WR)
    say("MSG_WAITALL at the end", s.recv(100, socket.MSG_WAITALL))


@case
def timeouts():
    s = command("silent")
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 150000))
    begin = time.monotonic()
    attempt("recv with SO_RCVTIMEO", s.recv, 1)
    took = time.monotonic() - begin
    say("waited as told", 0.1 < took < 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    s.settimeout(0.1)
    attempt("recv with a poll time-out", s.recv, 1)


@case
def end_of_stream():
    s = command("finish")
    say("poll", settled(s, select.POLLRDHUP))
    say("recv", s.recv(10))
    say("recv again", s.recv(10))
    attempt("send", s.send, b"still open\n")
    say("SO_ERROR", so_error(s))


@case
def half_close():
    s = command("count")
    s.sendall(b"12345")
    s.shutdown(socket.SHUT_WR)
    attempt("send after SHUT_WR", s.send, b"x")
    say("answer", s.recv(100))
    say("end", s.recv(100))
    say("poll", settled(s, select.POLLHUP))
    attempt("shutdown again", s.shutdown, socket.SHUT_WR)
    attempt("getpeername", s.getpeername)


@case
def shut_read():
    s = command("echo")
    s.shutdown(socket.SHUT_RD)
    say("recv", s.recv(10))
    say("poll", polled(s))
    attempt("send", s.send, b"x\n")


@case
def reset_by_peer():
    s = command("reset")
    say("poll", settled(s, select.POLLHUP))
    attempt("recv", s.recv, 10)
    attempt("recv again", s.recv, 10)
    attempt("send", s.send, b"x")
    say("SO_ERROR", so_error(s))
    say("poll after", polled(s))


@case
def reset_read_by_so_error():
    s = command("reset")
    settled(s, select.POLLHUP)
    say("SO_ERROR", so_error(s))
    say("SO_ERROR again", so_error(s))
    attempt("recv", s.recv, 10)


@case
def reset_then_send():
    s = command("reset")
    settled(s, select.POLLHUP)
    attempt("send", s.send, b"x")
    attempt("send again", s.send, b"x")
    attempt("recv", s.recv, 10)


@case
def reset_behind_data():
    s = command("data-then-reset")
    settled(s, select.POLLHUP)
    attempt("recv", s.recv, 10)
    attempt("recv again", s.recv, 10)


@case
def blocked_recv_meets_reset():
    s = command("reset-later")
    attempt("recv", s.recv, 10)


@case
def peer_gone_while_sending():
    s = command("close-unread")
    chunk = b"x" * 65536

    def fill():
        for _ in range(1000):
            s.send(chunk)
            time.sleep(0.001)
    attempt("send until it fails", fill)
    attempt("send again", s.send, chunk)


@case
def full_send_buffer():
    s = command("silent", blocking=False)
    total, quiet, why = 0, 0, "never"
    while total < 1 << 28 and quiet < 4:  # buffers on the way take more for a while
        try:
            total += s.send(b"x" * 65536)
            quiet = 0
        except OSError as e:
            why, quiet = errno.errorcode[e.errno], quiet + 1
            time.sleep(0.05)
    say("filled", why)
    say("poll", polled(s, events=select.POLLOUT))
    s.setblocking(True)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 100000))

    def fill():
        while True:
            s.send(b"x" * 65536)
    attempt("send with SO_SNDTIMEO", fill)


@case
def close_as_peer_sees_it():
    s = command("watch closed-clean")
    s.close()
    s = command("watch closed-with-unread-data\nsend 1000")
    settled(s, select.POLLIN)
    s.close()
    s = command("watch linger-zero")
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
    s = command("watch shut-down-both")
    s.shutdown(socket.SHUT_RDWR)
    s.close()
    s = command("watch closed-by-last-dup")
    d = s.dup()
    s.close()
    d.sendall(b"from the copy\n")
    d.close()
    s = command("watch exit-in-child")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    s.sendall(b"parent goes on\n")
    s.close()
    s = command("watch child-goes-on")
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(w)
        os.read(r, 1)
        s.sendall(b"child speaks\n")
        os._exit(0)
    s.close()
    os.close(w)
    os.waitpid(pid, 0)
    os.close(r)


@case
def report_of_the_peer():
    s = command("report 7")
    text = b""
    while True:
        part = s.recv(4096)
        if not part:
            break
        text += part
    for line in text.decode().splitlines():
        say("peer", line)


@case
def edge_triggered():
    s = command("echo", blocking=False)
    ep = select.epoll()
    ep.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    say("at once", [names(m) for _, m in ep.poll(1)])
    say("no second time", [names(m) for _, m in ep.poll(0.02)])
    s.send(b"one\n")
    settled(s, select.POLLIN)
    say("data", [names(m & ~select.EPOLLOUT) for _, m in ep.poll(1)])
    say("not again", [names(m) for _, m in ep.poll(0.02)])
    ep.modify(s, select.EPOLLIN | select.EPOLLET)
    say("after MOD", [names(m) for _, m in ep.poll(0)])
    say("read", s.recv(10))
    ep.modify(s, select.EPOLLIN | select.EPOLLONESHOT)
    s.send(b"two\n")
    settled(s, select.POLLIN)
    say("one shot", [names(m) for _, m in ep.poll(1)])
    say("spent", [names(m) for _, m in ep.poll(0.02)])
    ep.modify(s, select.EPOLLIN | select.EPOLLONESHOT)
    say("armed again", [names(m) for _, m in ep.poll(1)])
    attempt("add twice", ep.register, s, select.EPOLLIN)
    ep.unregister(s)
    attempt("delete twice", ep.unregister, s)
    attempt("modify what is not there", ep.modify, s, select.EPOLLIN)


def kinds(ep):
    """How many are ready, over several looks: who is asked first may differ."""
    seen = set()
    for _ in range(100):
        seen |= {fd for fd, _ in ep.poll(0)}
    return len(seen)


@case
def level_triggered():
    s = command("echo", blocking=False)
    ep = select.epoll()
    ep.register(s, select.EPOLLIN)
    say("quiet", ep.poll(0))
    s.send(b"one\n")
    say("data", [names(m) for _, m in ep.poll(3)])
    say("still", [names(m) for _, m in ep.poll(0)])
    s.recv(10)
    say("read", ep.poll(0))
    r, w = os.pipe()
    ep.register(r, select.EPOLLIN)
    os.write(w, b"x")
    s.send(b"two\n")
    settled(s, select.POLLIN)
    say("both kinds", kinds(ep))
    pair = socket.socketpair()
    ep.register(pair[0], select.EPOLLOUT)
    say("three kinds", kinds(ep))
    s.close()
    say("closed leaves the set", kinds(ep))
    outer = select.epoll()
    outer.register(ep, select.EPOLLIN)
    say("nested", [names(m) for _, m in outer.poll(1)])
    os.close(r)
    os.close(w)


@case
def many_ways_to_wait():
    s = command("echo")
    say("select", [len(x) for x in select.select([s], [s], [s], 0)])
    s.send(b"x\n")
    settled(s, select.POLLIN)
    say("select with data", [len(x) for x in select.select([s], [s], [s], 1)])
    t = tcp()
    say("select, fresh", [len(x) for x in select.select([t], [t], [t], 0)])
    r, w = os.pipe()
    p = select.poll()
    for f in (s, t, r, w):
        p.register(f, ALL)
    say("poll, mixed", [names(m) for _, m in p.poll(0)])
    os.close(r)
    os.close(w)


@case
def accepted():
    l = listener(7104)
    l.settimeout(10)
    command("dial 7104 greet").close()
    c, peer = l.accept()
    say("peer", peer[0])
    say("own address", c.getsockname())
    say("greeting", c.recv(6, socket.MSG_WAITALL))
    attempt("send", c.send, b"ok")
    say("end", c.recv(10))
    c.close()
    command("dial 7104 reset").close()
    time.sleep(0.2)
    c, peer = l.accept()
    attempt("recv on a connection reset before accept", c.recv, 10)
    l.setblocking(False)
    command("dial 7104 greet").close()
    say("poll", settled(l, select.POLLIN))
    c, _ = l.accept()
    say("accepted is blocking by itself", os.get_blocking(c.fileno()))
    attempt("accept again", l.accept)


@case
def options():
    s = command("echo")
    for level, name in [(socket.IPPROTO_TCP, "TCP_NODELAY"), (socket.SOL_SOCKET, "SO_KEEPALIVE"), (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
                        (socket.IPPROTO_TCP, "TCP_KEEPINTVL"), (socket.IPPROTO_TCP, "TCP_KEEPCNT"), (socket.SOL_SOCKET, "SO_REUSEADDR"),
                        (socket.SOL_SOCKET, "SO_OOBINLINE"), (socket.IPPROTO_TCP, "TCP_CORK"), (socket.IPPROTO_TCP, "TCP_LINGER2")]:
        opt = getattr(socket, name)
        before = attempt(name, s.getsockopt, level, opt)
        attempt(name + " set", s.setsockopt, level, opt, 1 if before in (0, None) else before)
        attempt(name + " then", s.getsockopt, level, opt)
    say("SO_LINGER", struct.unpack("ii", s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)))
    attempt("unknown option", s.getsockopt, socket.IPPROTO_TCP, 250)
    attempt("unknown option set", s.setsockopt, socket.IPPROTO_TCP, 250, 1)
    attempt("unknown level", s.setsockopt, 77, 1, 1)
    attempt("short value", s.setsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY, b"\1")


@case
def files():
    s = command("echo")
    r, w = os.pipe()
    os.write(w, b"through a pipe\n")
    say("splice in", os.splice(r, s.fileno(), 100) if hasattr(os, "splice") else "none")
    settled(s, select.POLLIN)
    say("splice out", os.splice(s.fileno(), w, 100) if hasattr(os, "splice") else "none")
    say("came back", os.read(r, 100))
    path = sys.argv[0]
    with open(path, "rb") as f:
        say("sendfile", os.sendfile(s.fileno(), f.fileno(), 2, 10))
        say("file position", f.tell())
    os.write(s.fileno(), b"\n")
    say("sent", s.recv(11, socket.MSG_WAITALL))
    attempt("lseek", os.lseek, s.fileno(), 0, os.SEEK_SET)
    attempt("pread", os.pread, s.fileno(), 1, 0)
    say("is a socket", os.fstat(s.fileno()).st_mode >> 12 == 0o14)
    os.close(r)
    os.close(w)


@case
def copies():
    s = command("echo")
    d = os.dup(s.fileno())
    s2 = socket.socket(fileno=d)
    s.close()
    s2.sendall(b"dup\n")
    say("dup", s2.recv(10))
    target = os.open("/dev/null", os.O_RDONLY)
    os.dup2(s2.fileno(), target)
    s2.close()
    s3 = socket.socket(fileno=target)
    s3.sendall(b"dup2\n")
    say("dup2", s3.recv(10))
    hole = os.open("/dev/null", os.O_RDONLY)
    os.dup2(hole, s3.fileno())
    attempt("recv on what was replaced", s3.recv, 1)
    s3.detach()
    os.close(hole)


@case
def interrupted():
    s = command("silent")

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop
    signal.signal(signal.SIGALRM, stop)
    for what, fn in [("recv", lambda: s.recv(1)), ("accept", lambda: listener(7105).accept()),
                     ("poll", lambda: polled(s, 5000, select.POLLIN)), ("epoll", lambda: epolled(s))]:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            fn()
            say(what, "came back")
        except Stop:
            say(what, "interrupted")


def epolled(s):
    ep = select.epoll()
    ep.register(s, select.EPOLLIN)
    ep.poll(5)


@case
def threads():
    s = command("echo")
    got = []
    t = threading.Thread(target=lambda: got.append(s.recv(100)))
    t.start()
    time.sleep(0.05)
    s.sendall(b"for the other\n")
    t.join(5)
    say("other thread reads", got)
    l = listener(7106)
    t = threading.Thread(target=lambda: got.append(l.accept()[1][0]))
    t.start()
    time.sleep(0.05)
    command("dial 7106 greet").close()
    t.join(5)
    say("other thread accepts", got[1:])


def main():
    signal.alarm(0)
    for fn in CASES:
        if len(sys.argv) > 3 and fn.__name__ not in sys.argv[3:]:
            continue
        print(fn.__name__, flush=True)
        try:
            fn()
        except Exception as e:  # the transcript shows it, and the rest goes on
            say("ended by", f"{type(e).__name__} {e}")


main()
