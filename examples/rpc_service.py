"""The RPC server of ``rpc_server.py`` as a service behind filters; the protocol is the same.

    python examples/rpc_service.py --listen 127.0.0.1:9000

It shows back-pressure that goes through a chain.  The limit lets so many requests through as there
are threads, and a few wait in front of them; when more would wait, it is not ready, and the server
reads from nobody.  Nor does it read from a client that does not read its replies.  Here replies
come in the order of their requests.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import os
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from stackmap import open_port
from stackmap.aio import EventLoop
from stackmap.codec import Buffer, Buffered, RemoteProtocolError
from stackmap.service import ConcurrencyLimit, Timeout, run, serve

HEADER = struct.Struct("!II")
#: Bytes of a payload; a client that announces more is disconnected.
MAX_FRAME = 64 * 1024
#: Requests of one client that are in work, or wait for a thread.
MAX_IN_FLIGHT = 8
#: Clients at a time; the others wait in the listener's backlog.
MAX_CLIENTS = 500
#: Seconds for which a client may leave replies unread, its host be silent, or a request take.
PATIENCE = 60
THREADS = os.cpu_count() or 1


class Numbered(NamedTuple):
    """A request, or its reply."""

    number: int
    payload: bytes


class RpcCodec(Buffered[Numbered, Numbered]):
    """A header of two numbers, the size of the payload and the request's, then the payload."""

    def _cut(self) -> Numbered | None:
        if len(self._data) < HEADER.size:
            return None
        size, number = HEADER.unpack_from(self._data)
        if size > MAX_FRAME:
            raise RemoteProtocolError(f"a payload of {size} bytes, and {MAX_FRAME} are allowed")
        end = HEADER.size + size
        if len(self._data) < end:
            return None
        payload = bytes(self._data[HEADER.size : end])
        del self._data[:end]
        return Numbered(number, payload)

    def send(self, message: Numbered) -> list[Buffer]:
        """Encode a reply."""
        return [HEADER.pack(len(message.payload), message.number), message.payload]


def handle(payload: bytes) -> bytes:
    """The work itself.  Runs in a thread of the pool."""
    return hashlib.sha256(payload).digest()


class Hashing:
    """The service: has the pool work."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool

    async def __call__(self, request: Numbered, /) -> Numbered:
        """Answer a request."""
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self.pool, handle, request.payload)
        return Numbered(request.number, result)


def main() -> None:
    """Parse the command line, listen and serve."""
    parser = argparse.ArgumentParser(description="A length-prefixed RPC server, as a service.")
    parser.add_argument("--backend", choices=["auto", "stackmap", "sockets"], default="auto")
    parser.add_argument("--listen", default="127.0.0.1:9000", metavar="HOST:PORT")
    options = parser.parse_args()
    host, _colon, number = options.listen.rpartition(":")
    with (
        open_port(options.backend) as port,
        socket.create_server((host, int(number))) as sock,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        # Accepted sockets inherit these options.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE * 1000)
        # All that may wait have room: clients may find the limit ready at the same time.
        limit = ConcurrencyLimit(2 * THREADS, max_waiters=MAX_CLIENTS * MAX_IN_FLIGHT)
        service = limit.and_then(Timeout(PATIENCE)).and_then(Hashing(pool))
        server = serve(
            [sock], service, RpcCodec, max_connections=MAX_CLIENTS, concurrency=MAX_IN_FLIGHT
        )
        print(f"listening on {host}:{sock.getsockname()[1]}, backend {port.backend}", flush=True)
        sys.exit(run(server, loop_factory=functools.partial(EventLoop, port)))


if __name__ == "__main__":
    main()
