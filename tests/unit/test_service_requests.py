"""Requests of a server's clients, their replies, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

import pytest

from stackmap.codec import Lines
from stackmap.service import (
    ConcurrencyLimit,
    Peer,
    Service,
    current_peer,
    make_service,
    per_connection,
    serve,
)
from stackmap.service._connection import ServedConnection
from stackmap.testing import memory_pair

from .service_peer import RawClient
from .service_server import (
    ANYWHERE,
    LONG,
    Held,
    exchange,
    new_loop,  # noqa: F401 (a fixture of all tests here)
    run,
    slow,
    until,
    upper,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


# -- requests and replies --------------------------------------------------------------------------


@make_service
def plain(req: bytes) -> bytes:
    return req.upper()


async def sometimes_slow(req: bytes) -> bytes:
    for _ in range(len(req) % 3):
        await asyncio.sleep(0)
    return req.upper()


def future(req: bytes) -> Awaitable[bytes]:
    reply = asyncio.get_running_loop().create_future()
    reply.set_result(req.upper())
    return reply


async def in_a_task(req: bytes) -> bytes:
    async with asyncio.timeout(LONG), asyncio.TaskGroup() as group:
        task = group.create_task(slow(req))
    return task.result()


SERVICES = [upper, plain, slow, sometimes_slow, future, in_a_task]


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("service", SERVICES)
def test_requests_are_answered_in_order(service: Service[bytes, bytes], concurrency: int) -> None:
    async def main() -> None:
        words = [b"word%d" % number + b"x" * (number % 7) for number in range(300)]
        async with serve(ANYWHERE, service, Lines, concurrency=concurrency) as server:
            got = await exchange(server, b"".join(word + b"\n" for word in words))
            assert got == b"".join(word.upper() + b"\n" for word in words)
            assert await exchange(server, b"") == b""

    run(main())


@pytest.mark.parametrize("service", SERVICES)
def test_a_client_that_waits_for_each_reply_gets_each(service: Service[bytes, bytes]) -> None:
    async def main() -> None:
        async with serve(ANYWHERE, service, Lines) as server:
            with await RawClient.connect(server) as client:
                for number in range(50):
                    await client.send(b"a%d" % number)
                    await client.send(b"\n")
                    expected = b"A%d\n" % number
                    assert await client.receive(len(expected)) == expected

    run(main())


@pytest.mark.parametrize("new_loop", ["asyncio"], indirect=True)  # whose transport it patches
def test_several_requests_of_a_segment_are_answered_with_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[bytes] = []
    transport: Any = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    write = transport.write

    def note(self: Any, data: bytes) -> None:
        sent.append(bytes(data))
        write(self, data)

    monkeypatch.setattr(transport, "write", note)

    async def main() -> None:
        async with serve(ANYWHERE, upper, Lines) as server:
            await exchange(server, b"a\nb\nc\n")

    run(main())
    assert sent == [b"A\nB\nC\n"]


def test_a_reply_of_none_sends_nothing() -> None:
    async def maybe(req: bytes) -> bytes | None:
        return req if req != b"quiet" else None

    async def main() -> None:
        async with serve(ANYWHERE, maybe, Lines) as server:
            assert await exchange(server, b"a\nquiet\nb\n") == b"a\nb\n"

    run(main())


def test_replies_do_not_wait_for_the_request_behind_them() -> None:
    async def main() -> None:
        held = Held()

        async def service(req: bytes) -> bytes:
            return await held(req) if req == b"held" else req

        async with serve(ANYWHERE, service, Lines) as server:
            with await RawClient.connect(server) as client:
                await client.send(b"a\nb\nheld\nc\n")
                assert await client.receive(4) == b"a\nb\n"
                held.release(b"held")
                assert await client.receive(7) == b"HELD\nc\n"

    run(main())


def test_requests_run_as_the_task_of_their_connection() -> None:
    async def name(req: bytes) -> bytes:
        before = asyncio.current_task()
        async with asyncio.timeout(LONG):
            if req == b"wait":
                await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is before
        return b"%d" % id(task)

    async def main() -> None:
        async with serve(ANYWHERE, name, Lines) as server:
            lines = (await exchange(server, b"go\nwait\ngo\n")).split()
            assert len(lines) == 3
            assert len(set(lines)) == 1
            assert await exchange(server, b"go\n") != lines[0] + b"\n"
            assert asyncio.current_task() is not None

    run(main())


def test_a_timeout_works_whenever_it_comes() -> None:
    async def wait(req: bytes) -> bytes:
        waits: dict[bytes, Callable[[], Awaitable[object]]] = {
            b"future": lambda: asyncio.get_running_loop().create_future(),
            b"turns": lambda: turns(10**9),
            b"sleep": lambda: asyncio.sleep(LONG),
        }
        try:
            async with asyncio.timeout(0 if req.endswith(b"!") else 0.001):
                await waits[req.rstrip(b"!")]()
        except TimeoutError:
            return b"late"
        return b"in time"

    async def turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def main() -> None:
        async with serve(ANYWHERE, wait, Lines) as server:
            requests = [b"future", b"turns", b"sleep"]
            requests += [request + b"!" for request in requests]
            got = await exchange(server, b"\n".join(requests * 3) + b"\n")
            assert got == b"late\n" * 18

    run(main())


def test_a_request_cancelled_in_the_turn_of_its_arrival_is_answered() -> None:
    """On uvloop, data and timers may come before the first step of the connection's task."""

    async def cancel_itself(_req: bytes) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            task.uncancel()
            return b"cancelled"
        return b"not cancelled"

    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.received = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            self.received.set_result(data)

    async def main() -> None:
        connection = ServedConnection(serve(ANYWHERE, cancel_itself, Lines))
        client = Client()

        def connect_and_send() -> None:
            memory_pair(connection, client)
            connection.data_received(b"x\n")

        asyncio.get_running_loop().call_soon(connect_and_send)
        assert await client.received == b"cancelled\n"
        connection.abort()
        await asyncio.wait([connection.task])

    run(main())


def test_each_connection_has_a_context_of_its_own() -> None:
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable", default=b"-")

    async def remember(req: bytes) -> bytes:
        before = variable.get()
        variable.set(req)
        await asyncio.sleep(0)
        assert variable.get() == req
        peer = current_peer()
        assert peer is not None
        return before + b" %d" % peer.peername[1]

    async def main() -> None:
        async with serve(ANYWHERE, remember, Lines) as server:
            with await RawClient.connect(server) as one, await RawClient.connect(server) as two:
                for client in (one, two):
                    port = client.sock.getsockname()[1]
                    await client.send(b"x\n")
                    expected = b"- %d\n" % port
                    assert await client.receive(len(expected)) == expected
            assert variable.get() == b"-"
            assert current_peer() is None

    run(main())


def test_concurrent_requests_of_a_connection_are_answered_in_order() -> None:
    async def main() -> None:
        held = Held()
        async with serve(ANYWHERE, held, Lines, concurrency=2) as server:
            with await RawClient.connect(server) as client:
                await client.send(b"a\nb\nc\nd\n")
                await held.has_begun(b"a", b"b")
                held.release(b"b")
                await asyncio.sleep(0)
                held.release(b"a")
                assert await client.receive(4) == b"A\nB\n"
                await held.has_begun(b"c", b"d")
                assert held.begun == [b"a", b"b", b"c", b"d"]
                held.release(b"d")
                held.release(b"c")
                assert await client.receive(4) == b"C\nD\n"

    run(main())


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("pause", [False, True])
def test_a_request_that_fails_ends_its_connection_only(
    concurrency: int, pause: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def service(req: bytes) -> bytes:
        if pause:
            await asyncio.sleep(0)
        if req == b"bad":
            raise ValueError("of the service")
        return req

    async def main() -> None:
        async with serve(ANYWHERE, service, Lines, concurrency=concurrency) as server:
            with await RawClient.connect(server) as other:
                assert await exchange(server, b"a\nbad\nb\n") == b"a\n"
                await other.send(b"still\n")
                assert await other.receive(6) == b"still\n"

    run(main())
    (record,) = caplog.records
    assert "hanging up, because" in record.getMessage()
    assert "ValueError('of the service')" in record.getMessage()


def test_a_service_that_raises_at_once_is_no_different(caplog: pytest.LogCaptureFixture) -> None:
    def service(req: bytes) -> Awaitable[bytes]:
        raise KeyError(req)

    async def main() -> None:
        async with serve(ANYWHERE, service, Lines) as server:
            assert await exchange(server, b"a\n") == b""

    run(main())
    assert "KeyError" in caplog.text


def test_a_reply_that_cannot_be_encoded_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def service(req: bytes) -> bytes:
        return req + b"\n" if req == b"bad" else req

    async def main() -> None:
        for concurrency in (1, 2):
            async with serve(ANYWHERE, service, Lines, concurrency=concurrency) as server:
                assert await exchange(server, b"a\nbad\nb\n") == b"a\n"

    run(main())
    assert caplog.text.count("LocalProtocolError") >= 2


class Strict(Lines):
    """Has a reply for clients that break the protocol."""

    def next_message(self) -> bytes | None:
        try:
            return super().next_message()
        except ValueError as error:
            error.reply = [b"ERROR\n"]  # type: ignore[attr-defined]
            raise


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_protocol_error_is_answered_behind_earlier_requests(concurrency: int) -> None:
    async def main() -> None:
        for service in (upper, slow):
            async with serve(
                ANYWHERE, service, lambda: Strict(max_length=8), concurrency=concurrency
            ) as server:
                with await RawClient.connect(server) as client:
                    await client.send(b"a\nb\n" + b"x" * 100 + b"\nc\n")
                    assert await client.rest() == b"A\nB\nERROR\n"

    run(main())


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_request_of_a_lost_connection_is_cancelled(concurrency: int) -> None:
    async def main() -> None:
        held = Held()
        async with serve(ANYWHERE, held, Lines, concurrency=concurrency) as server:
            client = await RawClient.connect(server)
            await client.send(b"a\n")
            await held.has_begun(b"a")
            client.reset()
            await held.until(lambda: held.cancelled == [b"a"])

    run(main())


def test_a_client_that_has_reset_is_hung_up_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        peers: list[Peer] = []

        def make(peer: Peer) -> Service[bytes, bytes]:
            peers.append(peer)
            return upper

        async with serve(ANYWHERE, per_connection(make), Lines) as server:
            client = await RawClient.connect(server)
            await client.send(b"a\n")
            assert await client.receive(2) == b"A\n"
            client.reset()
            peers[0].close()  # before the loop has seen the reset
            await until(lambda: server.connections == 0)

    run(main())
    assert caplog.text == ""


def test_a_lost_connection_that_waits_for_readiness_holds_up_nobody() -> None:
    async def main() -> None:
        held = Held()
        chain = ConcurrencyLimit(1).and_then(held)
        async with serve(ANYWHERE, chain, Lines) as server:
            with await RawClient.connect(server) as first, await RawClient.connect(server) as last:
                await first.send(b"a\n")
                await held.has_begun(b"a")
                gone = await RawClient.connect(server)
                await gone.send(b"b\n")
                await until(lambda: server.connections == 3)
                gone.reset()
                await last.send(b"c\n")
                held.release(b"a")
                while b"c" not in held.begun:  # b may have been begun before it
                    await held.until(lambda: len(held.begun) > 1)
                    if b"b" in held.begun and not held.waiting[b"b"].done():
                        held.release(b"b")
                    await asyncio.sleep(0)
                held.release(b"c")
                assert await last.receive(2) == b"C\n"

    run(main())
