#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# transparent.py listen: tells each connection the address that it came to, and
# whether its socket is transparent. Port 7400 takes any destination, 7401 the
# host's own, 7402 one address that is not the host's; nobody listens on 7403.
#
# transparent.py rights PEER: what this process may do.
import errno
import select
import socket
import sys

IP_FREEBIND, IP_TRANSPARENT, IPV6_TRANSPARENT = 15, 19, 75
FAR = "198.19.1.77"


def listener(addr, transparent):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if transparent:
        s.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    s.bind(addr)
    s.listen()
    return s


def listen():
    sockets = [listener(("", 7400), True), listener(("", 7401), False), listener((FAR, 7402), True)]
    print("ready", flush=True)
    while True:
        for s in select.select(sockets, [], [])[0]:
            c, _ = s.accept()
            addr, port = c.getsockname()
            c.sendall(f"{addr} {port} {c.getsockopt(socket.IPPROTO_IP, IP_TRANSPARENT)}\n".encode())
            c.close()


def attempt(what, fn, *args):
    try:
        fn(*args)
        print(what, "ok", flush=True)
    except OSError as e:
        print(what, errno.errorcode[e.errno], flush=True)


def rights(peer):
    s, six, free = socket.socket(), socket.socket(socket.AF_INET6), socket.socket()
    attempt("IP_TRANSPARENT", s.setsockopt, socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    attempt("IPV6_TRANSPARENT", six.setsockopt, socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    attempt("IP_FREEBIND", free.setsockopt, socket.IPPROTO_IP, IP_FREEBIND, 1)
    attempt("bind", s.bind, (FAR, 0))
    attempt("bind free", free.bind, (FAR, 0))
    attempt("connect free", free.connect, (peer, 80))


listen() if sys.argv[1] == "listen" else rights(sys.argv[2])
