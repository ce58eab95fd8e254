"""A client of a server under test, on a plain socket in the same event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Self

from tests.reset import reset_on_close

if TYPE_CHECKING:
    from stackmap.service import Server


class RawClient:
    """A socket that does what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    async def connect(cls, server: Server[Any, Any], **options: int) -> Self:
        listener = server.sockets[0]
        sock = socket.socket(listener.family, socket.SOCK_STREAM)
        sock.setblocking(False)
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def end(self) -> None:
        """Send FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    async def receive(self, size: int) -> bytes:
        """Exactly so many bytes, or what comes before the end."""
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < size:
            more = await loop.sock_recv(self.sock, min(size - len(data), 1 << 20))
            if not more:
                break
            data += more
        return bytes(data)

    async def rest(self) -> bytes:
        """Everything until the end."""
        return await self.receive(1 << 40)

    def fill(self, data: bytes, already: int = 0) -> int:
        """Send this again and again until no more is taken, and say how many bytes were."""
        sent = already
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += self.sock.send(data[sent % len(data) :])
        return sent - already

    def reset(self) -> None:
        """Close with RST."""
        reset_on_close(self.sock)
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()
