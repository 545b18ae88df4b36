#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# talk.py HOST: talks to itself over TCP: a thread that serves, connections that
# ask, bulk data both ways at once.
import hashlib
import socket
import sys
import threading

host = sys.argv[1]
TOTAL = 8 << 20


def stream(seed):
    block = hashlib.sha256(seed).digest() * 2048
    return [block] * (TOTAL // len(block))


def send(s, seed):
    for block in stream(seed):
        s.sendall(block)
    s.shutdown(socket.SHUT_WR)


def check(s, seed):
    want = hashlib.sha256(b"".join(stream(seed))).hexdigest()
    h, n = hashlib.sha256(), 0
    while True:
        part = s.recv(65536)
        if not part:
            break
        n += len(part)
        h.update(part)
    assert h.hexdigest() == want, f"{n} bytes of {TOTAL} came, with another sum"


def both(s, out, back):
    t = threading.Thread(target=send, args=(s, out))
    t.start()
    check(s, back)
    t.join()
    s.close()


def main():
    l = socket.create_server((host, 0))
    address = l.getsockname()

    def serve():
        both(l.accept()[0], b"server", b"client")
        for _ in range(200):
            c, _ = l.accept()
            c.sendall(c.recv(100))
            c.close()
    t = threading.Thread(target=serve)
    t.start()
    both(socket.create_connection(address), b"client", b"server")
    for i in range(200):
        s = socket.create_connection(address)
        s.sendall(b"%d" % i)
        assert s.recv(100) == b"%d" % i
        assert s.recv(100) == b""
        s.close()
    t.join()
    print("done")


main()
