"""A server of actors on real sockets: a listener, its connections, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import resource
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, TypeVar

import pytest

from stackmap.actor import (
    ActorSystem,
    Buffer,
    Child,
    ConnectionActor,
    Listener,
    Passive,
    Payload,
    Restart,
    Signal,
)
from stackmap.codec import Lines
from tests.reset import reset_on_close
from tests.unit.kv_actors import key_value_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def with_clients() -> T:
        try:
            return await asyncio.wait_for(main(), 60)
        finally:
            await hang_up()

    return asyncio.run(with_clients())


_open: list[asyncio.StreamWriter] = []


async def connect(address: tuple[str, int], **options: Any) -> Client:
    client = await asyncio.open_connection(*address, **options)
    _open.append(client[1])
    return client


async def hang_up() -> None:
    """Close all clients of the test."""
    while _open:
        writer = _open.pop()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[ActorSystem, tuple[str, int]]]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        async with ActorSystem() as system:
            await system.spawn(key_value_server(sock, **options)).ready()
            yield system, sock.getsockname()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (nothing tells)
        await asyncio.sleep(0)


def open_files() -> list[int]:
    return [int(file.name) for file in Path("/proc/self/fd").iterdir()]


async def talk(client: Client, *lines: bytes) -> list[bytes]:
    """Send commands together, and read an answer to each."""
    reader, writer = client
    writer.write(b"".join(line + b"\n" for line in lines))
    return [(await reader.readline()).rstrip(b"\n") for _ in lines]


async def end(client: Client) -> bytes:
    """Read until the end of the stream."""
    reader, writer = client
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    writer.close()
    return b""


def test_a_key_value_server() -> None:
    async def main() -> None:
        async with serving() as (system, address):
            client = await connect(address)
            assert await talk(client, b"get a", b"set a 1 2", b"get a", b"count", b"what") == [
                b"none",
                b"ok",
                b"value 1 2",
                b"1",
                b"error",
            ]
            other = await connect(address)
            assert await talk(other, b"watch a") == [b"ok"]
            assert await talk(client, b"set a 3", b"del a", b"del a") == [b"ok", b"ok", b"none"]
            assert await other[0].readline() == b"changed a 3\n"
            client[1].write(b"get a\nquit\n")
            assert await end(client) == b"none\n"
            assert "Session" in system.tree()

    run(main)


def test_many_clients_and_pipelines_against_a_dictionary() -> None:
    async def one_client(address: tuple[str, int], number: int) -> None:
        rng = random.Random(number)
        client = await connect(address)
        items: dict[int, int] = {}
        for _round in range(5):
            lines, expected = [], []
            for _ in range(rng.randrange(1, 40)):
                key, value = rng.randrange(5), rng.randrange(1000)
                match rng.randrange(3):
                    case 0:
                        items[key] = value
                        lines.append(b"set %d-%d %d" % (number, key, value))
                        expected.append(b"ok")
                    case 1:
                        found = items.get(key)
                        lines.append(b"get %d-%d" % (number, key))
                        expected.append(b"none" if found is None else b"value %d" % found)
                    case _:
                        gone = items.pop(key, None)
                        lines.append(b"del %d-%d" % (number, key))
                        expected.append(b"none" if gone is None else b"ok")
            assert await talk(client, *lines) == expected
        client[1].close()

    async def main() -> None:
        async with serving() as (_system, address), asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(one_client(address, number))

    run(main)


def test_wrong_arguments_are_refused_at_once() -> None:
    codec: Any = Lines()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        with pytest.raises(TypeError, match="that makes codecs, not a Lines"):
            Listener(ConnectionActor, sock, codec=codec, capacity=1)

        async def main() -> None:
            async with ActorSystem() as system:
                listener: Any = Listener(ConnectionActor, sock, capacity=1)
                with pytest.raises(TypeError, match=r"takes a Child, .* not a Listener"):
                    system.spawn(listener)

        run(main)


def test_the_listener_pauses_at_its_limit() -> None:
    async def main() -> None:
        async with serving(max_connections=2) as (system, address):
            clients = [await connect(address) for _ in range(3)]
            assert await talk(clients[0], b"count") == [b"0"]
            assert await talk(clients[1], b"count") == [b"0"]
            third = asyncio.create_task(talk(clients[2], b"count"))
            for _ in range(20):
                assert await talk(clients[0], b"count") == [b"0"]
            assert not third.done()
            assert system.tree().count("make_session") == 2
            clients[1][1].close()
            assert await third == [b"0"]

    run(main)


def test_a_store_that_fails_restarts_with_its_listener_on_the_same_port() -> None:
    async def main() -> None:
        async with serving() as (system, address):
            client = await connect(address)
            assert await talk(client, b"set a 1") == [b"ok"]
            client[1].write(b"crash\n")
            assert await end(client) == b""
            client = await connect(address)
            assert await talk(client, b"get a") == [b"none"]
            restarts = [
                ref.statistics.restarts
                for name in ("store", "listener", "server")
                if (ref := system.whereis(name)) is not None
            ]
            assert restarts == [1, 1, 0]

    run(main)


def test_stopping_answers_what_was_asked_and_refuses_new_clients() -> None:
    async def main() -> None:
        async with serving() as (system, address):
            client = await connect(address)
            assert await talk(client, b"count") == [b"0"]
            client[1].write(b"set a 1\nget a\n")
            idle = await connect(address)
            assert await talk(idle, b"count") != []
            system.stop()
            await system.wait()
            assert await end(client) == b"ok\nvalue 1\n"
            assert await end(idle) == b""

    run(main)


def test_a_client_that_goes_in_the_middle_harms_nobody() -> None:
    async def main() -> None:
        async with serving() as (system, address):
            client = await connect(address)
            for number in range(20):
                with socket.create_connection(address) as sock:
                    sock.send(b"set a 1\nset b")
                    if number % 2:
                        reset_on_close(sock)
                await asyncio.sleep(0)
            assert await talk(client, b"count") != []
            listener = system.whereis("listener")
            assert listener is not None
            assert listener.statistics.restarts == 0
            await until(lambda: system.tree().count("make_session") == 1)
            assert await talk(client, b"get a") == [b"value 1"]

    run(main)


class Fails(ConnectionActor[Never, Payload, Buffer]):
    """Sends half an answer, and fails; the peer must not take it for a whole one."""

    def connected(self) -> None:
        self.stream.active(True)

    def received(self, message: Payload) -> None:
        self.send(bytes(message))
        self.stream.flush()
        raise RuntimeError("in the middle of an answer")


def test_the_connection_of_an_actor_that_fails_is_reset() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with ActorSystem() as system:
                listener: Listener[Payload, Buffer] = Listener(Fails, sock, capacity=1)
                await system.spawn(Child(lambda: listener, capacity=1)).ready()
                reader, writer = await connect(sock.getsockname())
                writer.write(b"request")
                with pytest.raises(ConnectionResetError):
                    await reader.read()

    run(main)


def test_a_connection_without_a_codec_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    def no_codec() -> Lines:
        raise RuntimeError("no codec for this connection")

    class Other(ConnectionActor[Never, bytes, Buffer]):
        """Never made."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with ActorSystem() as system:
                listener: Listener[bytes, Buffer] = Listener(
                    Other, sock, capacity=1, codec=no_codec
                )
                await system.spawn(Child(lambda: listener, capacity=1)).ready()
                assert await end(await connect(sock.getsockname())) == b""

    run(main)
    assert "no codec for this connection" in caplog.text


def test_accept_backs_off_without_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with serving() as (_system, address):
            first = await connect(address)
            assert await talk(first, b"count") == [b"0"]
            with socket.socket() as sock:
                sock.setblocking(False)
                used = os.open("/dev/null", os.O_RDONLY)
                os.close(used)  # the lowest that is free
                highest = max(open_files())
                fill = [os.open("/dev/null", os.O_RDONLY) for _ in range(used, highest + 1)]
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(fill) + 1, hard))
                try:
                    with contextlib.suppress(BlockingIOError):
                        sock.connect(address)
                    await until(lambda: "cannot accept" in caplog.text)
                    assert await talk(first, b"count") == [b"0"]
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    for descriptor in fill:
                        os.close(descriptor)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, b"count\n")
                assert await loop.sock_recv(sock, 100) == b"0\n"

    run(main)


def test_servers_leave_nothing_open() -> None:
    async def main() -> None:
        for _ in range(20):
            async with serving() as (_system, address):
                clients = [await connect(address) for _ in range(5)]
                for client in clients:
                    assert await talk(client, b"count") == [b"0"]
                for _reader, writer in clients:
                    writer.close()

    gc.collect()
    before = len(open_files())
    run(main)
    gc.collect()
    assert len(open_files()) == before


class Echo(ConnectionActor[Any, Payload, Buffer]):
    """Credit of one read at a time; answers are awaited."""

    def connected(self) -> None:
        self.stream.active("once")

    def received(self, message: Payload) -> None:
        self.send(message.view)

    def on_signal(self, signal: Signal) -> Awaitable[None] | None:
        if signal == Passive():
            self.stream.active("once")
            return None
        return super().on_signal(signal)


@contextlib.asynccontextmanager
async def echoing(**options: Any) -> AsyncIterator[tuple[ActorSystem, tuple[str, int]]]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with ActorSystem() as system:
            child = Child(lambda: Listener(Echo, sock, capacity=4, **options), capacity=1)
            await system.spawn(child).ready()
            yield system, sock.getsockname()


def test_megabytes_are_echoed_with_credit_and_a_slow_reader() -> None:
    async def main() -> None:
        async with echoing() as (_system, address):
            pattern = random.Random(1).randbytes(8 << 20)
            reader, writer = await connect(address, limit=4096)

            async def send() -> None:
                for start in range(0, len(pattern), 100_000):
                    writer.write(pattern[start : start + 100_000])
                    await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            received = bytearray()
            while data := await reader.read(65536):
                received += data
            await sending
            assert received == pattern
            writer.close()

    run(main)


def test_a_sender_is_held_back_by_the_window_while_the_actor_is_passive() -> None:
    class Deaf(ConnectionActor[Any, Payload, Buffer]):
        def received(self, message: Payload) -> None:
            self.send(message.view)

        def receive(self, message: bool) -> None:
            self.stream.active(message)

    async def main() -> None:
        made: list[Deaf] = []

        def make() -> Deaf:
            made.append(Deaf())
            return made[-1]

        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with ActorSystem() as system:
                await system.spawn(Child(lambda: Listener(make, sock, capacity=4), 1)).ready()
                with socket.create_connection(sock.getsockname()) as client:
                    client.setblocking(False)
                    sent = 0
                    for _ in range(1000):
                        await asyncio.sleep(0)
                        with contextlib.suppress(BlockingIOError):
                            sent += client.send(b"x" * 65536)
                    with pytest.raises(BlockingIOError):
                        client.send(b"x" * 65536)
                    made[0].ref.tell_nowait(True)
                    loop = asyncio.get_running_loop()
                    client.shutdown(socket.SHUT_WR)
                    received = 0
                    while data := await loop.sock_recv(client, 1 << 20):
                        received += len(data)
                    assert received == sent

    run(main)


def test_a_client_of_actors() -> None:
    class Asker(ConnectionActor[bytes, bytes, Buffer]):
        answers: list[bytes]

        def __init__(self) -> None:
            self.answers = []

        def connected(self) -> None:
            self.stream.active(True)

        def receive(self, message: bytes) -> None:
            self.send(message)

        def received(self, message: bytes) -> None:
            self.answers.append(message)
            if len(self.answers) == 2:
                self.stop()

    async def main() -> None:
        asker = Asker()
        async with serving() as (system, (host, port)):
            child = Child(lambda: asker, capacity=4, restart=Restart.TEMPORARY)
            ref = await system.connect(child, host, port, codec=Lines)
            await ref.tell(b"set x 9")
            await ref.tell(b"get x")
            assert await ref.wait() is None
            assert asker.answers == [b"ok", b"value 9"]
            with pytest.raises(OSError):
                await system.connect(child, host, 1)

    run(main)


@contextlib.asynccontextmanager
async def documented(number: int, connections: int) -> AsyncIterator[list[Client]]:
    """Clients of a program of ``docs/actors.md``, whose connections it accepts in their order."""
    text = (ROOT / "docs/actors.md").read_text()
    program = text.split("```python\n")[number].split("```", 1)[0]
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    program = program.replace("7000", str(address[1]))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    try:
        clients: list[Client] = []
        while len(clients) < connections:
            with contextlib.suppress(ConnectionRefusedError):
                clients.append(await connect(address))
        yield clients
    finally:
        process.kill()
        await process.wait()


def test_the_echo_of_the_documentation() -> None:
    async def main() -> None:
        async with documented(1, connections=1) as [(reader, writer)]:
            writer.write(b"one\ntwo\n")
            assert await reader.readexactly(8) == b"one\ntwo\n"

    run(main)


def test_the_chat_of_the_documentation() -> None:
    async def main() -> None:
        async with documented(2, connections=3) as clients:
            # They join in their order: the last one is heard by all.
            for speaker in (2, 0, 1):
                clients[speaker][1].write(b"from %d\n" % speaker)
                for index, (reader, _writer) in enumerate(clients):
                    if index != speaker:
                        assert await reader.readline() == b"from %d\n" % speaker
            clients[1][1].close()
            clients[2][1].write(b"bye\n")
            assert await clients[0][0].readline() == b"bye\n"

    run(main)
