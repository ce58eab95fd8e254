"""A client of services, and servers on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Self

import pytest

from stackmap.codec import Lines, LocalProtocolError
from stackmap.service import (
    Client,
    ConnectionLostError,
    Hedge,
    NotConnectedError,
    Retry,
    ServiceClosedError,
    Status,
    Timeout,
    connect,
    ready,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

LONG = 60.0


class LineServer:
    """A server whose replies a test writes by hand."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.port = 0
        self.ended = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                await self.lines.put(line)
        self.ended += 1


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LONG):
            await main

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def upper(req: bytes) -> bytes:
    return req.upper()


def test_requests_are_pipelined_and_matched_by_their_order() -> None:
    async def main() -> None:
        async with LineServer() as server, Client(("127.0.0.1", server.port), Lines) as client:
            calls = [asyncio.create_task(client(b"%d" % number)) for number in range(5)]
            assert [await server.lines.get() for _ in range(5)] == [b"%d\n" % i for i in range(5)]
            server.writers[0].write(b"a\nb\nc\nd\ne\n")
            assert await asyncio.gather(*calls) == [b"a", b"b", b"c", b"d", b"e"]

    run(main())


def test_a_caller_that_gives_up_leaves_its_place_in_the_order() -> None:
    async def main() -> None:
        async with LineServer() as server, Client(("127.0.0.1", server.port), Lines) as client:
            first = asyncio.create_task(client(b"1"))
            await server.lines.get()
            second = asyncio.create_task(client(b"2"))
            await server.lines.get()
            first.cancel()
            await asyncio.wait([first])
            server.writers[0].write(b"one\ntwo\n")
            assert await second == b"two"

    run(main())


def test_a_lost_connection_fails_its_requests_and_is_replaced() -> None:
    async def main() -> None:
        async with LineServer() as server, Client(("127.0.0.1", server.port), Lines) as client:
            call = asyncio.create_task(client(b"1"))
            await server.lines.get()
            server.writers[0].transport.abort()
            with pytest.raises(ConnectionLostError, match="before the reply came"):
                await call
            call = asyncio.create_task(client(b"2"))
            assert await server.lines.get() == b"2\n"
            server.writers[1].write(b"two\n")
            assert await call == b"two"

    run(main())


@pytest.mark.parametrize("noise", [b"nobody asked\n", b"a\nnobody asked\n", b"x" * 100])
def test_a_server_that_breaks_the_protocol_is_left(noise: bytes) -> None:
    async def main() -> None:
        async with LineServer() as server:
            client = await connect(("127.0.0.1", server.port), lambda: Lines(max_length=50))
            calls = [] if noise == b"nobody asked\n" else [asyncio.create_task(client(b"1"))]
            for _ in calls:
                await server.lines.get()
            await until(lambda: bool(server.writers))
            server.writers[0].write(noise)
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert outcome == b"a" or isinstance(outcome, ConnectionLostError)
            await until(lambda: server.ended == 1)
            call = asyncio.create_task(client(b"2"))
            assert await server.lines.get() == b"2\n"
            server.writers[1].write(b"two\n")
            assert await call == b"two"
            await client.aclose(0)

    run(main())


def test_a_refused_connection_is_not_connected_error() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            address = unused.getsockname()
        with pytest.raises(NotConnectedError, match="cannot connect to"):
            await connect(address, Lines)
        client = Client[bytes, bytes](address, Lines)
        outcomes = await asyncio.gather(*(client(b"x") for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [NotConnectedError] * 3

        async def late_server() -> None:
            async with serve(address, upper, Lines):
                await asyncio.sleep(LONG)

        starting = asyncio.create_task(late_server())
        retry = Retry(10**6, backoff=lambda _retries: 0.001).and_then(client)
        assert await retry(b"x") == b"X"
        await client.aclose(0)
        starting.cancel()
        await asyncio.wait([starting])

    run(main())


def test_more_connections_are_opened_while_those_there_are_busy() -> None:
    async def main() -> None:
        async with LineServer() as server:
            client = await connect(
                ("127.0.0.1", server.port), Lines, connections=2, max_in_progress=2
            )
            calls = [asyncio.create_task(client(b"x")) for _ in range(4)]
            for _ in range(4):
                await server.lines.get()
            assert len(server.writers) == 2
            assert client.status is Status.BUSY
            waiter = ready(client)
            assert waiter is not None
            calls += [asyncio.create_task(client(b"x")) for _ in range(2)]
            server.writers[0].write(b"a\n")
            await waiter
            await server.lines.get()
            assert server.lines.empty()
            server.writers[0].write(b"a\na\n")  # of the second request, and of the fifth
            await server.lines.get()
            server.writers[0].write(b"a\n")
            server.writers[1].write(b"a\na\n")
            assert await asyncio.gather(*calls) == [b"a"] * 6
            assert client.status is Status.OPEN
            assert ready(client) is None
            await client.aclose()

    run(main())


def test_a_server_that_does_not_read_makes_the_client_busy() -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def stuck(req: bytes) -> bytes:
            await release.wait()
            return req[:1]

        async with serve(("127.0.0.1", 0), stuck, Lines) as server:
            client = await connect(server.sockets[0].getsockname(), Lines, max_in_progress=10**6)
            calls = []
            while client.status is Status.OPEN:
                calls.append(asyncio.create_task(client(b"x" * 50_000)))
                await asyncio.sleep(0)
            begun = len(calls)
            assert begun < 1000
            assert ready(client) is not None
            release.set()
            assert await asyncio.gather(*calls) == [b"x"] * begun
            assert ready(client) is None
            await client.aclose()

    run(main())


def test_a_client_that_is_closed_answers_what_it_has_sent() -> None:
    async def main() -> None:
        async with LineServer() as server:
            client = await connect(("127.0.0.1", server.port), Lines)
            call = asyncio.create_task(client(b"1"))
            await server.lines.get()
            closing = asyncio.create_task(client.aclose())
            await asyncio.sleep(0)
            assert client.status is Status.CLOSED
            with pytest.raises(ServiceClosedError):
                await client(b"2")
            assert not closing.done()
            server.writers[0].write(b"one\n")
            await closing
            assert await call == b"one"

            client = await connect(("127.0.0.1", server.port), Lines)
            call = asyncio.create_task(client(b"1"))
            await server.lines.get()
            await client.aclose(asyncio.get_running_loop().time())
            with pytest.raises(ConnectionLostError):
                await call

    run(main())


def test_a_request_that_the_codec_refuses_harms_no_other() -> None:
    async def main() -> None:
        async with serve(("127.0.0.1", 0), upper, Lines) as server:
            client = await connect(server.sockets[0].getsockname(), Lines)
            with pytest.raises(LocalProtocolError):
                await client(b"two\nlines")
            assert await client(b"one") == b"ONE"
            await client.aclose()

    run(main())


def test_filters_work_on_clients() -> None:
    async def main() -> None:
        async with LineServer() as server:
            client = await connect(("127.0.0.1", server.port), Lines, connections=2)
            with pytest.raises(TimeoutError):
                await Timeout(0.001).and_then(client)(b"1")
            await server.lines.get()
            hedge = Hedge(0.001, lambda _req: True).and_then(client)
            call = asyncio.ensure_future(hedge(b"2"))
            assert [await server.lines.get(), await server.lines.get()] == [b"2\n", b"2\n"]
            for writer in server.writers:
                writer.write(b"x\n" if writer is server.writers[0] else b"")
                writer.write(b"two\n")
            assert await call in (b"two", b"x")
            assert repr(hedge).endswith(f".and_then(Client(('127.0.0.1', {server.port})))")
            await client.aclose(0)

    run(main())


def test_a_unix_socket(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with serve(path, upper, Lines), Client[bytes, bytes](path, Lines) as client:
            assert await client(b"x") == b"X"

    run(main())


def test_arguments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError):
        Client(("127.0.0.1", 1), Lines, connections=0)
    with pytest.raises(ValueError):
        Client(("127.0.0.1", 1), Lines, max_in_progress=0)
