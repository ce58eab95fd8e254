"""What a protocol itself says, and where it ends a connection: servers of HTTP on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Never

import pytest

from stackmap.actor import ActorSystem, Child, ConnectionActor, Listener
from stackmap.codec import memcached
from stackmap.codec.http1 import ClientCodec, Request, Response, ServerCodec
from stackmap.service import Client, Framed, NotConnectedError, ServiceClosedError, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from stackmap.codec import Codec

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Address = tuple[str, int]


def answer(request: Request) -> Response:
    if request.target == "/last":
        return Response(200, [("Connection", "close")], request.body)
    return Response(200, (), request.body)


@contextlib.asynccontextmanager
async def service(
    codec: Callable[[], Codec[Any, Any]], reply: Callable[[Any], Any], **options: Any
) -> AsyncIterator[Address]:
    async def answer_later(request: Any) -> Any:
        await asyncio.sleep(0)
        return reply(request)

    async with serve(("127.0.0.1", 0), answer_later, codec, **options) as server:
        yield server.sockets[0].getsockname()


@contextlib.asynccontextmanager
async def actors(
    codec: Callable[[], Codec[Any, Any]], reply: Callable[[Any], Any]
) -> AsyncIterator[Address]:
    class Answers(ConnectionActor[Never, Any, Any]):
        def connected(self) -> None:
            self.stream.active(True)

        def received(self, message: Any) -> None:
            self.send(reply(message))

    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with ActorSystem() as system:
            child = Child(lambda: Listener(Answers, sock, codec=codec, capacity=1), capacity=1)
            await system.spawn(child).ready()
            yield sock.getsockname()


Serving = Any
MODELS = pytest.mark.parametrize(
    "model", [service, partial(service, concurrency=4), actors], ids=["one", "four", "actors"]
)


def run(
    serving: AbstractAsyncContextManager[Address], test: Callable[[Streams], Awaitable[None]]
) -> None:
    """Let a client talk to a server."""

    async def main() -> None:
        async with asyncio.timeout(60), serving as address:
            reader, writer = await asyncio.open_connection(*address)
            try:
                await test((reader, writer))
            finally:
                writer.close()

    asyncio.run(main())


def http(model: Serving, test: Callable[[Streams], Awaitable[None]]) -> None:
    run(model(ServerCodec, answer), test)


@MODELS
@pytest.mark.parametrize(
    "request_line",
    [b"GET / HTTP/1.0\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n", b"GET /last HTTP/1.1\r\n"],
    ids=["1.0", "client", "server"],
)
def test_the_reply_that_ends_the_connection_ends_it(model: Serving, request_line: bytes) -> None:
    async def test(client: Streams) -> None:
        reader, writer = client
        writer.write(request_line + b"Host: x\r\nContent-Length: 2\r\n\r\nhi")
        reply = await reader.read()  # until the end
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert reply.endswith(b"\r\n\r\nhi")

    http(model, test)


@MODELS
def test_requests_behind_the_last_one_are_not_answered(model: Serving) -> None:
    async def test(client: Streams) -> None:
        reader, writer = client
        first = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(first % b"" + first % b"last" + first % b"" * 3)
        assert (await reader.read()).count(b"HTTP/1.1 200") == 2

    http(model, test)


@MODELS
def test_a_client_that_expects_leave_to_send_gets_it(model: Serving) -> None:
    async def test(client: Streams) -> None:
        reader, writer = client
        for _ in range(2):  # the connection goes on
            writer.write(b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n")
            writer.write(b"Content-Length: 4\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"body")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
            assert await reader.readexactly(4) == b"body"

    http(model, test)


@MODELS
def test_a_command_without_a_reply_ends_the_connection(model: Serving) -> None:
    async def test(client: Streams) -> None:
        reader, writer = client
        writer.write(b"version\r\nquit\r\nversion\r\n")
        assert await reader.read() == b"VERSION 1\r\n"

    run(model(memcached.ServerCodec, lambda _request: memcached.Version("1")), test)


def test_a_client_opens_another_connection_after_the_last_reply() -> None:
    async def main() -> None:
        async with service(ServerCodec, answer) as address, Client(address, ClientCodec) as client:
            for target in ("/", "/last", "/last", "/"):
                reply = await client(Request("GET", target, [("Host", "x")], b"b"))
                assert (reply.status, reply.body) == (200, b"b")
        with pytest.raises((NotConnectedError, ServiceClosedError)):
            await client(Request("GET", "/", [("Host", "x")]))

    asyncio.run(main())


def test_a_client_that_quits_gets_the_replies_before() -> None:
    async def main() -> None:
        def version(_request: Any) -> memcached.Version:
            return memcached.Version("1")

        async with (
            service(memcached.ServerCodec, version) as address,
            Client(address, memcached.ClientCodec) as client,
        ):
            asked = [asyncio.ensure_future(client(memcached.Command((b"version",))))]
            asked.append(asyncio.ensure_future(client(memcached.Quit())))
            first, quitting = await asyncio.gather(*asked, return_exceptions=True)
            assert first == memcached.Version("1")
            assert isinstance(quitting, OSError)
            assert await client(memcached.Command((b"version",))) == first

    asyncio.run(main())


def test_a_whole_server_in_memory_ends_too() -> None:
    async def main() -> None:
        async def reply(request: Request) -> Response:
            return answer(request)

        chain = Framed(ServerCodec()).and_then(reply)
        expects = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
        assert await chain(expects) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await chain(b"x") == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
        last = await chain(b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        assert last.count(b"HTTP/1.1 200") == 1
        with pytest.raises(ServiceClosedError):
            await chain(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    asyncio.run(main())
