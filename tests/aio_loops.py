"""Helpers for tests of transports: a connection between a loop's transport and a plain socket."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stackmap import reset_transport

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PATIENCE = 60.0


@dataclass
class Recorder(asyncio.Protocol):
    """Records what its transport tells."""

    story: list[str] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    lost: list[BaseException | None] = field(default_factory=list)
    keep_open: bool = False
    transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.story.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        self.data += data
        if self.story[-1] != "data":
            self.story.append("data")

    def eof_received(self) -> bool:
        self.story.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.story.append("pause")

    def resume_writing(self) -> None:
        self.story.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.story.append("lost")
        self.lost.append(exc)


async def until(done: Callable[[], object]) -> None:
    """Give the loop turns until ``done``."""
    async with asyncio.timeout(PATIENCE):
        while not done():  # noqa: ASYNC110 (of whatever state)
            await asyncio.sleep(0)


async def connect(make_protocol: Callable[[], Any]) -> tuple[Any, Any, socket.socket]:
    """A connected transport, its protocol, and the peer's socket, which does not block."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Small buffers fill sooner when the peer does not read.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        transport, protocol = await loop.create_connection(make_protocol, *listener.getsockname())
        peer, _address = listener.accept()
    peer.setblocking(False)
    return transport, protocol, peer


async def connect_protocols(
    first: asyncio.BaseProtocol, second: asyncio.BaseProtocol
) -> tuple[asyncio.Transport, asyncio.Transport]:
    """Connect two protocols by TCP, and return their transports in the same order."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        connecting = loop.create_task(
            loop.create_connection(lambda: first, *listener.getsockname()[:2])
        )
        sock, _address = await loop.sock_accept(listener)
        peer, _second = await loop.connect_accepted_socket(lambda: second, sock)
        transport, _first = await connecting
    return transport, peer


async def connect_streams(
    limit: int, accepting: ssl.SSLContext | None = None, trusting: ssl.SSLContext | None = None
) -> tuple[Stream, Stream, Callable[[], object]]:
    """Connect two streams by TCP, or TLS; the last returned resets the connection at the second."""
    accepted: asyncio.Queue[Stream] = asyncio.Queue()
    server = await asyncio.start_server(
        lambda *peer: accepted.put_nowait(peer), "127.0.0.1", 0, limit=limit, ssl=accepting
    )
    address = server.sockets[0].getsockname()
    stream = await asyncio.open_connection(*address, limit=limit, ssl=trusting)
    peer = await accepted.get()
    server.close()
    return stream, peer, lambda: reset_transport(peer[1].transport)


async def receive(peer: socket.socket, size: int) -> bytes:
    """Exactly so many bytes that the peer receives."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    async with asyncio.timeout(PATIENCE):
        while len(data) < size:
            piece = await loop.sock_recv(peer, min(1 << 20, size - len(data)))
            assert piece, f"ended after {len(data)} of {size}"
            data += piece
    return bytes(data)


async def receive_all(peer: socket.socket) -> bytes:
    """Receive as the peer until the end of the stream."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    async with asyncio.timeout(PATIENCE):
        while piece := await loop.sock_recv(peer, 1 << 20):
            data += piece
    return bytes(data)


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, None]) -> None:
    """Run a test, in which nothing may go to the loop's handler of exceptions."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: complaints.append(context))
        await main

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(watched())
    assert complaints == []
