"""Services and actors that speak TLS, on each kind of loop.

``tests/guest/test_tls.py`` runs the same on rings.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest

from stackmap import SocketPort
from stackmap.actor import (
    ActorRef,
    ActorSystem,
    Buffer,
    Child,
    ConnectionActor,
    Listener,
    Payload,
    PeerClosed,
    Restart,
    Signal,
)
from stackmap.aio import EventLoop, loop_factory
from stackmap.codec import Lines
from stackmap.service import Client, serve
from tests.aio_loops import run
from tests.certificate import contexts

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    NewLoop = Callable[[], asyncio.AbstractEventLoop]
    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

PATTERN = bytes(range(251)) * 4177  # 1 MiB
ROUNDS = 5


@pytest.fixture(params=["asyncio", "uvloop", "sockets"])
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    """Makes loops of the kind under test."""
    if request.param == "uvloop":
        import uvloop  # guests have no use for it

        return uvloop.new_event_loop
    return asyncio.SelectorEventLoop if request.param == "asyncio" else loop_factory(SocketPort)


@pytest.fixture
def tls(tmp_path: Path) -> Contexts:
    return contexts(tmp_path)


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    """TLS warns of protocols that do not take it into account."""
    yield
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def check_port(received: int) -> None:
    """Where there is a port, it carried that much at least, and every connection."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, EventLoop):
        stats = loop.port.stats()
        assert stats.rx_bytes + stats.socket_rx_bytes > received
        assert not loop.stats.fallbacks


async def shout(line: bytes, /) -> bytes:
    return line.upper()


def test_a_service_and_its_client(new_loop: NewLoop, tls: Contexts) -> None:
    accepting, trusting = tls
    line = bytes(range(97, 123)) * 300

    async def main() -> None:
        async with serve(("127.0.0.1", 0), shout, Lines, ssl=accepting) as server:
            address = server.sockets[0].getsockname()
            client = Client(address, Lines, connections=3, ssl=trusting)
            for _ in range(ROUNDS):
                replies = await asyncio.gather(*(client(line) for _ in range(10)))
                assert replies == [line.upper()] * 10
            await client.aclose()
        assert server.cut_off == 0
        check_port(2 * ROUNDS * 10 * len(line))

    run(new_loop, main())


class Echo(ConnectionActor[Any, Payload, Buffer]):
    """Sends back what it receives."""

    def connected(self) -> None:
        self.stream.active(True)

    def received(self, message: Payload) -> None:
        self.send(message.view)


class Front(ConnectionActor[Any, bytes, Buffer]):
    """Answers the first line, and hands the connection over."""

    def __init__(self, back: ActorRef[Any]) -> None:
        self.back = back

    def connected(self) -> None:
        self.stream.active(True)

    def received(self, message: bytes) -> None:
        self.send(b"front " + message)
        self.stream.hand_over(self.back)
        self.stop()


class Back(ConnectionActor[Any, bytes, Buffer]):
    """Answers further lines, until the peer ends."""

    def connected(self) -> None:
        self.stream.active(True)

    def received(self, message: bytes) -> None:
        self.send(b"back " + message)


def listen(
    make: Callable[[], Any], sock: socket.socket, tls: Contexts, **options: Any
) -> Child[Any]:
    return Child(lambda: Listener(make, sock, capacity=8, ssl=tls[0], **options), 1)


def test_an_actor_echoes(new_loop: NewLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            await system.spawn(listen(Echo, sock, tls)).ready()
            reader, writer = await asyncio.open_connection(*sock.getsockname(), ssl=tls[1])
            for _ in range(3):
                writer.write(PATTERN)
                assert await reader.readexactly(len(PATTERN)) == PATTERN
            writer.close()
            await writer.wait_closed()
        check_port(6 * len(PATTERN))

    with socket.create_server(("127.0.0.1", 0)) as sock:
        run(new_loop, main())


def test_an_actor_hands_its_connection_over(new_loop: NewLoop, tls: Contexts) -> None:
    signals: list[Signal] = []

    class Watched(Back):
        def on_signal(self, signal: Signal) -> Any:
            signals.append(signal)
            return super().on_signal(signal)

    async def main() -> None:
        async with ActorSystem() as system:
            back = system.spawn(Child(Watched, capacity=8, restart=Restart.TEMPORARY))
            await system.spawn(listen(lambda: Front(back), sock, tls, codec=Lines)).ready()
            reader, writer = await asyncio.open_connection(*sock.getsockname(), ssl=tls[1])
            writer.write(b"one\ntwo\nthree\n")  # two of them move with the connection
            for expected in (b"front one\n", b"back two\n", b"back three\n"):
                assert await reader.readline() == expected
            writer.write(b"four\n")
            assert await reader.readline() == b"back four\n"
            writer.close()
            await writer.wait_closed()
            await back.wait()
        assert any(isinstance(signal, PeerClosed) for signal in signals)

    with socket.create_server(("127.0.0.1", 0)) as sock:
        run(new_loop, main())


def test_an_actor_connects(new_loop: NewLoop, tls: Contexts) -> None:
    heard: list[bytes] = []

    class Asking(ConnectionActor[Any, bytes, Buffer]):
        def connected(self) -> None:
            self.stream.active(True)
            self.send(b"question")

        def received(self, message: bytes) -> None:
            heard.append(message)
            self.stop()

    async def main() -> None:
        async with (
            serve(("127.0.0.1", 0), shout, Lines, ssl=tls[0]) as server,
            ActorSystem() as system,
        ):
            host, number = server.sockets[0].getsockname()
            asking = await system.connect(
                Child(Asking, capacity=8), host, number, codec=Lines, ssl=tls[1]
            )
            await asking.wait()
        assert heard == [b"QUESTION"]

    run(new_loop, main())


def test_who_does_not_speak_tls_ends_no_other(new_loop: NewLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            await system.spawn(listen(Echo, sock, tls, max_connections=2)).ready()
            strangers = [await asyncio.open_connection(*sock.getsockname()) for _ in range(4)]
            for _reader, stranger in strangers:
                stranger.write(b"GET / HTTP/1.0\r\n\r\n")
            reader, writer = await asyncio.open_connection(*sock.getsockname(), ssl=tls[1])
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            for _reader, each in (*strangers, (reader, writer)):
                each.close()

    with socket.create_server(("127.0.0.1", 0)) as sock:
        run(new_loop, main())
