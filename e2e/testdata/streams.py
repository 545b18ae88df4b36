#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# streams.py epoll|poll|select: an asyncio server that answers each line with
# the sum of the bytes that follow it, and 40 clients at once.
import asyncio
import hashlib
import selectors
import sys

CLIENTS, BODY = 40, bytes(range(251)) * 4178


async def serve(reader, writer):
    while line := await reader.readline():
        body = await reader.readexactly(int(line))
        writer.write(hashlib.sha256(body).hexdigest().encode() + b"\n")
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def ask(host, port, n):
    reader, writer = await asyncio.open_connection(host, port)
    for size in (0, 1, n * 100, len(BODY)):
        writer.write(b"%d\n" % size + BODY[:size])
        await writer.drain()
        answer = await asyncio.wait_for(reader.readline(), 30)
        assert answer.strip().decode() == hashlib.sha256(BODY[:size]).hexdigest(), f"client {n}: {size} bytes: {answer}"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def main():
    server = await asyncio.start_server(serve, ["127.0.0.1", "::1"], 0)
    ports = {s.getsockname()[0]: s.getsockname()[1] for s in server.sockets}
    async with asyncio.TaskGroup() as group:
        for n in range(CLIENTS):
            host = list(ports)[n % 2]
            group.create_task(ask(host, ports[host], n))
    server.close()
    await server.wait_closed()


kinds = {"epoll": selectors.EpollSelector, "poll": selectors.PollSelector, "select": selectors.SelectSelector}
loop = asyncio.SelectorEventLoop(kinds[sys.argv[1]]())
loop.run_until_complete(main())
loop.close()
