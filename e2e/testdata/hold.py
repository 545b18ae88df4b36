#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# hold.py accept HOST PORT: accepts connections and reads nothing.
# hold.py wait HOST PORT: connects, waits in recv, in epoll and in poll, each on
# a connection of its own, and says how each wait ended.
import errno
import os
import select
import socket
import sys
import threading

what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


def accept():
    l = socket.socket()
    l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    l.bind((host, port))
    l.listen()
    held = []
    say("listening")
    while True:
        held.append(l.accept())
        say("accepted")


def outcome(s):
    try:
        got = s.recv(1)
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))
    return repr(got)


def say(*words):
    os.write(1, (" ".join(words) + "\n").encode())  # in one piece: threads say something at once


def in_recv(s):
    say("recv:", outcome(s))


def in_epoll(s):
    e = select.epoll()
    e.register(s, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    mask = e.poll()[0][1]
    say("epoll:", "HUP" if mask & select.EPOLLHUP else hex(mask), "ERR" if mask & select.EPOLLERR else "", outcome(s))


def in_poll(s):
    p = select.poll()
    p.register(s, select.POLLIN)
    mask = p.poll()[0][1]
    say("poll:", "HUP" if mask & select.POLLHUP else hex(mask), "ERR" if mask & select.POLLERR else "", outcome(s))


def wait():
    waits = []
    for fn in (in_recv, in_epoll, in_poll):
        s = socket.create_connection((host, port))
        s.sendall(b"silent\n")
        waits.append(threading.Thread(target=fn, args=(s,)))
    for t in waits:
        t.start()
    say("waiting")
    for t in waits:
        t.join()


{"accept": accept, "wait": wait}[what]()
