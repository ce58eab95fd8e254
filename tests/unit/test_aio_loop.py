"""What the loop has beyond any other: attached connections, acknowledgements, segments, counters.

``tests/guest/test_aio_loop.py`` runs the same on rings.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stackmap import ClosedError, Connection, Port, Segment, SocketPort
from stackmap.aio import (
    EventLoop,
    PortTransport,
    SegmentProtocol,
    acknowledged,
    loop_factory,
)
from tests.aio_loops import Recorder, connect, receive, receive_all, run, until
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable

    NewLoop = Callable[[], EventLoop]

PATTERN = bytes(range(251)) * 4177  # 1 MiB
#: STACKMAP_LONG=1 runs more of what finds leaks.
LIFECYCLES = 500 if os.environ.get("STACKMAP_LONG") else 50
#: Lives after which caches are as full as they get.
WARM_UP = 20
#: In such pieces Python takes memory from the system: it may need one more for what is free.
ARENA = 1 << 20


@pytest.fixture
def make_port() -> Callable[[], Port]:
    """Makes ports of the backend under test."""
    return SocketPort


@pytest.fixture
def new_loop(make_port: Callable[[], Port]) -> NewLoop:
    return loop_factory(make_port)


def this_loop() -> EventLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, EventLoop)
    return loop


class Segments(SegmentProtocol):
    """Takes segments, and keeps the first."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.connections: set[Connection] = set()
        self.views: list[memoryview] = []
        self.kept: Any = None
        self.transport: Any = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def segments_received(self, segments: list[Segment]) -> None:
        for segment in segments:
            self.data += segment.view
            self.connections.add(segment.connection)
            self.views.append(segment.view)
        if self.kept is None:
            self.kept = this_loop().port.keep(segments[0])

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        self.ended = True


def test_segments_are_views(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Segments)
        with peer:
            await asyncio.get_running_loop().sock_sendall(peer, PATTERN[:50000])
            await until(lambda: len(protocol.data) == 50000)
            assert protocol.data == PATTERN[:50000]
            assert protocol.connections == {transport.get_extra_info("stackmap.connection")}
            await asyncio.sleep(0)
            with pytest.raises(ValueError, match="released"):
                len(protocol.views[-1])
            with protocol.kept as kept:
                assert PATTERN.startswith(bytes(kept.view))
                assert len(kept.view)
            transport.pause_reading()
            await asyncio.get_running_loop().sock_sendall(peer, b"held")
            transport.resume_reading()
            peer.close()
        await until(lambda: protocol.ended)
        assert protocol.data == PATTERN[:50000] + b"held"

    run(new_loop, main())


def test_segments_on_a_transport_without(new_loop: NewLoop) -> None:
    protocol = Segments()
    protocol.kept = ()
    protocol.data_received(b"bytes")
    assert protocol.data == b"bytes"


def test_acknowledged(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            await transport.acknowledged()  # nothing was written
            transport.write(b"small")
            await asyncio.wait_for(transport.acknowledged(), 60)
            assert transport.get_extra_info("stackmap.connection").unacknowledged == 0
            transport.write(PATTERN * 8)
            first = transport.acknowledged()
            transport.write(b"after it")
            second = transport.acknowledged()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not first.done()  # the peer has room for less
            await receive(peer, 8 * len(PATTERN) + 8)
            await asyncio.wait_for(asyncio.gather(first, second), 60)
            transport.write(b"handed to TCP")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.wait_for(transport.acknowledged(), 60)  # too late for an event
            transport.close()
            await until(lambda: protocol.lost)
            with pytest.raises(ClosedError):
                await transport.acknowledged()

    run(new_loop, main())


def test_acknowledged_fails_with_the_connection(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        transport.write(PATTERN * 8)
        future = transport.acknowledged()
        await asyncio.sleep(0)
        reset_on_close(peer)
        peer.close()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(future, 60)
        await until(lambda: protocol.lost)
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.write(PATTERN * 8)
            future = transport.acknowledged()
            transport.abort()
            with pytest.raises(ClosedError):
                await asyncio.wait_for(future, 60)

    run(new_loop, main())


def test_acknowledged_of_a_stream(new_loop: NewLoop, tmp_path: Path) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            _reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"request")
            await asyncio.wait_for(acknowledged(writer), 60)
            writer.close()
            await writer.wait_closed()
        path = str(tmp_path / "socket")
        unix = await asyncio.start_unix_server(serve, path)
        async with unix:
            _reader, writer = await asyncio.open_unix_connection(path)
            with pytest.raises(NotImplementedError):
                await acknowledged(writer)
            writer.close()
            await writer.wait_closed()

    run(new_loop, main())


def test_a_tcp_socket_that_is_taken_for_a_unix_socket_is_attached(new_loop: NewLoop) -> None:
    """Servers that are given a descriptor may not look what it is: uvicorn's ``--fd``."""

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert writer.get_extra_info("stackmap.connection")
            writer.write(await reader.readexactly(len(PATTERN)))
            writer.close()
            await writer.wait_closed()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            mistaken = socket.fromfd(listener.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
            async with await asyncio.start_server(answer, sock=mistaken):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(PATTERN)
                assert await reader.read() == PATTERN
                writer.close()
                await writer.wait_closed()
        assert this_loop().stats.attached == 2
        assert not this_loop().stats.fallbacks

    run(new_loop, main())


def test_what_cannot_be_attached_works_and_is_counted(new_loop: NewLoop, tmp_path: Path) -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()
            await writer.wait_closed()

        path = str(tmp_path / "socket")
        async with await asyncio.start_unix_server(echo, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(PATTERN)
            writer.write_eof()
            assert await reader.read() == PATTERN
            writer.close()
            await writer.wait_closed()
        stats = this_loop().stats
        assert stats.attached == 0
        assert list(stats.fallbacks.values()) == [2]

        transport, _protocol, peer = await connect(Recorder)
        assert stats.attached == 1
        assert type(transport) is PortTransport
        assert transport.get_extra_info("stackmap.port") is this_loop().port
        transport.abort()
        peer.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(new_loop, main())


def write_blocking(
    make_pair: Callable[[], tuple[Any, socket.socket]], write: Callable[[Any], None]
) -> list[bytes]:
    """Write, and wait in the same callback until a thread has read it and answered."""
    transport, peer = make_pair()
    peer.setblocking(True)
    peer.settimeout(60)
    told, answer = socket.socketpair()
    told.settimeout(60)

    def read_and_answer() -> None:
        answer.sendall(peer.recv(100))

    thread = threading.Thread(target=read_and_answer)
    thread.start()
    write(transport)
    heard = [told.recv(100)]  # nothing goes back to the loop before
    thread.join()
    told.close()
    answer.close()
    return heard


@pytest.mark.parametrize("first", [True, False])
def test_a_callback_may_wait_for_the_answer_to_what_it_wrote(
    new_loop: NewLoop, first: bool
) -> None:
    """The kind of uvloop's issue 631."""
    heard: list[bytes] = []

    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            if not first:  # the loop has waited meanwhile, and so has what watches over it
                await asyncio.sleep(0.02)
            for _ in range(3):
                heard.extend(write_blocking(lambda: (transport, peer), lambda to: to.write(b"x")))
            peer.setblocking(False)
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())
    assert heard == [b"x"] * 3


def test_a_protocol_may_wait_for_the_answer_to_what_it_wrote(new_loop: NewLoop) -> None:
    peers: list[socket.socket] = []
    heard: list[bytes] = []

    class Blocking(Recorder):
        def data_received(self, data: bytes) -> None:  # noqa: ARG002
            heard.extend(
                write_blocking(
                    lambda: (self.transport, peers[0]), lambda to: to.writelines([b"a", b"b"])
                )
            )

    async def main() -> None:
        transport, protocol, peer = await connect(Blocking)
        peers.append(peer)
        with peer:
            peer.send(b"go")
            await until(lambda: heard)
            peer.setblocking(False)
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())
    assert heard == [b"ab"]


def test_what_is_sent_meanwhile_stays_in_order(new_loop: NewLoop) -> None:
    """More than TCP takes is sent from outside, and more is written behind it."""

    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            for number in range(12):
                piece = PATTERN[number:]
                for start in range(0, len(piece), 100_000):
                    transport.write(piece[start : start + 100_000])
                    this_loop().port.flush_from_outside()
                if number % 5 == 0:
                    time.sleep(0.012)  # noqa: ASYNC251 (it is to block)
            wanted = b"".join(PATTERN[number:] for number in range(12))
            transport.close()
            assert await receive_all(peer) == wanted
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_another_thread_may_send_at_any_time(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        port = this_loop().port
        done = threading.Event()

        def send() -> None:
            while not done.is_set():
                port.flush_from_outside()

        thread = threading.Thread(target=send)
        thread.start()
        try:
            with peer:
                for _ in range(4):
                    transport.write(PATTERN)
                    await asyncio.sleep(0)
                transport.close()
                assert await receive_all(peer) == 4 * PATTERN
        finally:
            done.set()
            thread.join()
        await until(lambda: protocol.lost)
        assert protocol.lost == [None]

    run(new_loop, main())


def test_system_exit_loses_nothing(new_loop: NewLoop) -> None:
    class Exiting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise SystemExit

    async def send(pairs: list[Any]) -> None:
        for _transport, _protocol, peer in pairs:
            peer.send(b"x")
        await asyncio.sleep(60)

    async def make() -> list[Any]:
        return [await connect(Exiting) for _ in range(5)]

    with closing(new_loop()) as loop:
        pairs = loop.run_until_complete(make())
        task = loop.create_task(send(pairs))
        for _ in range(5):
            with pytest.raises(SystemExit):
                loop.run_forever()
        assert [protocol.data for _transport, protocol, _peer in pairs] == [b"x"] * 5
        for transport, _protocol, peer in pairs:
            peer.close()
            transport.close()
        task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))


def test_whose_port_it_is(make_port: Callable[[], Port]) -> None:
    with make_port() as port:
        with closing(EventLoop(port)) as loop:
            assert loop.port is port
            loop.run_until_complete(asyncio.sleep(0))
        assert not port.closed
        assert port.exchange(0) == []
    with closing(loop_factory(make_port)()) as loop:
        port = loop.port
    assert port.closed


def test_a_connection_of_somebody_else_is_complained_of(new_loop: NewLoop) -> None:
    told: list[str] = []

    async def main() -> None:
        loop = this_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context["message"]))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            connection = loop.port.attach(listener.accept()[0])
        with peer:
            peer.send(b"x")
            await until(lambda: told)
            connection.abort()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert "somebody else" in told[0]


@pytest.mark.parametrize("tls", [False, True])
def test_a_server_that_closes_while_it_accepts_leaves_nobody_connected(
    new_loop: NewLoop, contexts: tuple[ssl.SSLContext, ssl.SSLContext], tls: bool
) -> None:
    """A transport is made in the turn after the one that accepts, and asks its server then."""

    async def main() -> None:
        loop = this_loop()

        def close_before_its_first_step(
            loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
        ) -> asyncio.Task[Any]:
            loop.call_soon(server.close)
            return asyncio.Task(coroutine, loop=loop, **options)

        listener = socket.create_server(("127.0.0.1", 0))
        accepting = contexts[0] if tls else None
        server = await loop.create_server(Recorder, sock=listener, ssl=accepting)
        loop.set_task_factory(close_before_its_first_step)
        with socket.create_connection(listener.getsockname()) as peer:
            peer.setblocking(False)
            assert await receive_all(peer) == b""
        assert loop.port.connections == []
        assert loop.stats.attached == 0

    run(new_loop, main())


def test_the_environment_chooses_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKMAP_BACKEND", "sockets")
    with closing(EventLoop()) as loop:
        assert loop.port.backend == "sockets"
    assert loop.port.closed
    monkeypatch.setenv("STACKMAP_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="no backend"):
        EventLoop()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for a server and for its clients."""
    folder = tmp_path_factory.mktemp("tls")
    command = "req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=localhost"
    subprocess.run(
        ["openssl", *command.split(), "-addext", "subjectAltName=DNS:localhost"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "cert", folder / "key")
    return server, ssl.create_default_context(cafile=folder / "cert")


@pytest.mark.parametrize("how", ["at once", "start_tls"])
def test_tls(new_loop: NewLoop, contexts: tuple[ssl.SSLContext, ssl.SSLContext], how: str) -> None:
    server_context, client_context = contexts

    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if how == "start_tls":
                assert await reader.readline() == b"STARTTLS\n"
                writer.write(b"go\n")
                await writer.start_tls(server_context)
            writer.write(await reader.readexactly(len(PATTERN)))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        at_once = how == "at once"
        server = await asyncio.start_server(
            echo, "127.0.0.1", 0, ssl=server_context if at_once else None
        )
        async with server, asyncio.timeout(60):
            address = server.sockets[0].getsockname()
            if at_once:
                reader, writer = await asyncio.open_connection(
                    *address, ssl=client_context, server_hostname="localhost"
                )
            else:
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"STARTTLS\n")
                assert await reader.readline() == b"go\n"
                await writer.start_tls(client_context, server_hostname="localhost")
            assert writer.get_extra_info("ssl_object").version().startswith("TLS")
            assert isinstance(writer.get_extra_info("stackmap.connection"), Connection)
            writer.write(PATTERN)
            assert await reader.readexactly(len(PATTERN)) == PATTERN
            writer.close()
            await writer.wait_closed()
        assert this_loop().stats.attached == 2

    run(new_loop, main())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def resident() -> int:
    """This process's bytes in memory, without what it shares and without garbage."""
    gc.collect()
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGESIZE")


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_lives_of_servers_leave_nothing(new_loop: NewLoop) -> None:
    async def live() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(100))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            pairs = [
                await asyncio.open_connection(*server.sockets[0].getsockname()) for _ in range(3)
            ]
            for _reader, writer in pairs:
                writer.write(b"ping")
            for reader, writer in pairs:
                assert await reader.read() == b"ping"
                writer.close()
                await writer.wait_closed()
        port = this_loop().port
        await until(lambda: not port.connections and port.stats().bufs_pinned == 0)

    async def main() -> None:
        for _ in range(WARM_UP):
            await live()
        files, bytes_before, objects_before = descriptors(), resident(), objects()
        for _ in range(LIFECYCLES):
            await live()
        assert descriptors() <= files
        assert len(this_loop()._transports) == 0  # type: ignore[attr-defined]
        assert objects() - objects_before < LIFECYCLES / 10
        assert resident() - bytes_before < ARENA

    run(new_loop, main())


def test_call_soon_threadsafe_and_signals(new_loop: NewLoop) -> None:
    async def main() -> None:
        loop = this_loop()
        future = loop.create_future()
        thread = threading.Thread(
            target=loop.call_soon_threadsafe, args=(future.set_result, "from a thread")
        )
        thread.start()
        assert await asyncio.wait_for(future, 60) == "from a thread"
        thread.join()
        assert await loop.run_in_executor(None, os.getpid) == os.getpid()
        process = await asyncio.create_subprocess_exec(
            "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert (await process.communicate(b"through a pipe"))[0] == b"through a pipe"

    run(new_loop, main())
