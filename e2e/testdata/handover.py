# SPDX-License-Identifier: Apache-2.0
"""Connections that change hands with unread data in them.

handover.py serve: a listener whose connections are passed on, each in another
way, by the first line that the peer sends; whoever gets one reads the rest to
the end and answers with it and its length.
"""
import array
import os
import socket
import subprocess
import sys


def answer(how, fd):
    """Echoes all that comes, with its length, and ends."""
    s = socket.socket(fileno=fd)
    s.settimeout(20)
    data = b''
    while True:
        piece = s.recv(65536)
        if not piece:
            break
        data += piece
    s.sendall(f'{how} {len(data)} {s.getpeername()[0]}\n'.encode() + data)
    s.close()


def receive():
    """The descriptor that comes over standard input's Unix socket."""
    u = socket.socket(fileno=0)
    _, fds, _, _ = socket.recv_fds(u, 10, 1)
    answer('message', fds[0])


def line(c):
    """The first line, and not a byte more; '' if there is none."""
    out = b''
    while not out.endswith(b'\n'):
        byte = c.recv(1)
        if not byte:
            return ''
        out += byte
    return out.decode().strip()


def hand_over(how, c):
    me = [sys.executable, os.path.abspath(__file__)]
    if how == 'message':
        ours, theirs = socket.socketpair()
        p = subprocess.Popen(me + ['receive'], stdin=theirs)
        theirs.close()
        socket.send_fds(ours, [b'x'], [c.fileno()])
        c.close()  # long before the other has it
        ours.close()
    elif how == 'inetd':
        p = subprocess.Popen(me + ['stdin'], stdin=c, stdout=c)
        c.close()
    elif how == 'sed':  # a program of stdio
        p = subprocess.Popen(['sed', 's/o/0/g'], stdin=c, stdout=c)
        c.close()
    elif how == 'spawn':
        pid = os.posix_spawn(me[0], me + ['stdin'], os.environ,
                             file_actions=[(os.POSIX_SPAWN_DUP2, c.fileno(), 0)])
        c.close()
        os.waitpid(pid, 0)
        return
    elif how == 'exec':
        if os.fork() == 0:
            os.dup2(c.fileno(), 0)
            c.close()
            os.execv(me[0], me + ['stdin'])
        c.close()
        os.wait()
        return
    p.wait()


def serve():
    s = socket.create_server(('0.0.0.0', 7000), reuse_port=False)
    print('ready', flush=True)
    while True:
        c, _ = s.accept()
        how = line(c)
        if how:
            hand_over(how, c)
        else:
            c.close()


if __name__ == '__main__':
    {'serve': serve, 'receive': receive, 'stdin': lambda: answer('stdin', os.dup(0))}[sys.argv[1]]()
