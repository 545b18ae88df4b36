#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# last_words.py HOST PORT COUNT SIZE: sends SIZE bytes on each of COUNT
# connections and is gone in the next moment, half of the connections not closed.
import os
import socket
import sys

host, port, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
held = []
for _ in range(count):
    s = socket.create_connection((host, port))
    s.sendall(b"tally\n")
    held.append(s)
for i, s in enumerate(held):
    s.sendall(b"x" * size)
    if i % 2:
        s.close()
os._exit(0)
