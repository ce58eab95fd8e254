"""A server, and clients on plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import resource
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from stackmap.codec import Lines
from stackmap.service import (
    AnyFilter,
    ConcurrencyLimit,
    MaskCancel,
    Peer,
    Service,
    ServiceFactory,
    Status,
    Timeout,
    background,
    current_peer,
    make_service,
    per_connection,
    serve,
)
from stackmap.service._connection import ServedConnection, unread_bytes
from stackmap.testing import MemoryTransport, memory_pair
from tests.certificate import contexts

from .service_peer import RawClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from stackmap.service import Server

ANYWHERE = ("127.0.0.1", 0)
#: More than a server has to do with in any of these tests.
LONG = 60.0


async def upper(req: bytes) -> bytes:
    return req.upper()


class Held:
    """A service that keeps requests waiting until they are released, and records each outcome."""

    def __init__(self) -> None:
        self.waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self.begun: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.changed = asyncio.Event()
        self.closed = 0

    async def __call__(self, req: bytes, /) -> bytes:
        self.begun.append(req)
        future = self.waiting[req] = asyncio.get_running_loop().create_future()
        self.changed.set()
        try:
            reply: bytes = await future
        except asyncio.CancelledError:
            self.cancelled.append(req)
            raise
        finally:
            self.changed.set()
        return reply

    async def has_begun(self, *requests: bytes) -> None:
        await self.until(lambda: set(requests) <= set(self.begun))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def release(self, req: bytes) -> None:
        self.waiting[req].set_result(req.upper())

    async def aclose(self, _deadline: float | None = None, /) -> None:
        self.closed += 1
        self.changed.set()


_new_loop: Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> None:
    """Choose what run() makes: the standard library's loop, or one that shares no code with it."""
    global _new_loop  # noqa: PLW0603 (for run())
    _new_loop = asyncio.SelectorEventLoop if request.param == "asyncio" else uvloop.new_event_loop


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LONG):
            await main

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(limited())


async def exchange(server: Server[Any, Any], data: bytes) -> bytes:
    """Send data and FIN as a client, and return everything received."""
    with await RawClient.connect(server) as client:
        await client.send(data)
        client.end()
        return await client.rest()


# -- requests and replies ------------------------------------------------------------------------


@make_service
def plain(req: bytes) -> bytes:
    return req.upper()


async def slow(req: bytes) -> bytes:
    await asyncio.sleep(0)
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


# -- what goes wrong -----------------------------------------------------------------------------


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


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


# -- back-pressure -------------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async def main() -> None:
        served = 0

        async def big(req: bytes) -> bytes:
            nonlocal served
            served += 1
            return req * 4

        async with serve(ANYWHERE, big, Lines) as server:
            with await RawClient.connect(server, SO_RCVBUF=1 << 14) as client:
                sent = 0
                idle = 0
                while idle < 50:  # until neither side goes on
                    more = client.fill(b"x" * 999 + b"\n", sent)
                    before = served
                    await asyncio.sleep(0.002)
                    idle = 0 if more or served != before else idle + 1
                    sent += more
                assert served * 1000 < sent
                client.end()
                got = await client.rest()
                assert set(got.split(b"\n")) == {b"x" * 3996, b""}
                # The last request may have been cut off, which is an error of the client.
                assert len(got) // 3997 == sent // 1000

    run(main())


def test_a_connection_is_not_read_while_its_service_is_not_ready() -> None:
    async def main() -> None:
        held = Held()
        chain = Timeout(LONG).and_then(ConcurrencyLimit(1)).and_then(held)
        async with serve(ANYWHERE, chain, Lines, concurrency=9) as server:
            with await RawClient.connect(server) as one, await RawClient.connect(server) as two:
                await one.send(b"a\n")
                await held.has_begun(b"a")
                await two.send(b"b\n")
                sent = 2
                idle = 0
                while idle < 50:
                    more = two.fill(b"x" * 10_000 + b"\n")
                    await asyncio.sleep(0.002)
                    idle = 0 if more else idle + 1
                    sent += more
                assert held.begun == [b"a"]
                held.release(b"a")
                await held.has_begun(b"b")
                held.release(b"b")
                assert await two.receive(2) == b"B\n"
                assert await one.receive(2) == b"A\n"

    run(main())


def test_one_connection_that_sends_much_does_not_keep_the_others_waiting() -> None:
    async def main() -> None:
        order: list[bytes] = []

        async def note(req: bytes) -> bytes:
            order.append(req)
            return req

        async with serve(ANYWHERE, note, Lines) as server:
            with await RawClient.connect(server) as many, await RawClient.connect(server) as one:
                await until(lambda: server.connections == 2)
                many.sock.send(b"m\n" * 5000)
                one.sock.send(b"1\n")
                assert await one.receive(2) == b"1\n"
                assert order.index(b"1") < 1000
                assert await many.receive(10000) == b"m\n" * 5000

    run(main())


# -- connections ---------------------------------------------------------------------------------


def test_each_connection_has_the_service_that_the_factory_makes_for_it() -> None:
    async def main() -> None:
        made: list[Held] = []

        class PerConnection(ServiceFactory[bytes, bytes]):
            closed = 0

            async def make(self, peer: Peer, /) -> Service[bytes, bytes]:
                assert current_peer() is peer
                await asyncio.sleep(0)
                made.append(Held())
                return made[-1]

            async def aclose(self, _deadline: float | None = None, /) -> None:
                self.closed += 1

        factory = PerConnection()
        async with serve(ANYWHERE, Timeout(LONG).and_then(factory), Lines) as server:
            with await RawClient.connect(server) as one:
                await one.send(b"a\nb\n")
                await until(lambda: bool(made))
                await made[0].has_begun(b"a")
                made[0].release(b"a")
                await made[0].has_begun(b"b")
                two = await RawClient.connect(server)
                await two.send(b"c\n")
                await until(lambda: len(made) == 2)
                await made[1].has_begun(b"c")
                assert made[0].closed == made[1].closed == 0
                two.reset()
                await made[1].until(lambda: made[1].closed == 1)
                assert made[0].closed == 0
                made[0].release(b"b")
                assert await one.receive(4) == b"A\nB\n"
        assert [held.closed for held in made] == [1, 1]
        assert factory.closed == 1

    run(main())


def test_a_connection_without_a_service_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    def make(peer: Peer) -> Service[bytes, bytes]:
        raise ValueError(f"no service for {peer}")

    async def main() -> None:
        async with serve(ANYWHERE, per_connection(make), Lines) as server:
            with await RawClient.connect(server) as client, contextlib.suppress(ConnectionError):
                assert await client.rest() == b""

    run(main())
    assert "no service could be made" in caplog.text


def test_a_service_can_reset_its_client() -> None:
    async def cut_off(_req: bytes) -> bytes:
        peer = current_peer()
        assert peer is not None
        peer.abort()
        return b"half a reply"

    async def main() -> None:
        async with serve(ANYWHERE, cut_off, Lines) as server:
            with await RawClient.connect(server) as client:
                await client.send(b"request\n")
                with pytest.raises(ConnectionResetError):
                    await client.rest()

    run(main())


def test_a_drain_leaves_a_connection_alone_whose_socket_is_closed() -> None:
    """On a port the socket is closed a turn before connection_lost() is called."""

    async def main() -> None:
        sock = socket.socket()
        sock.close()
        transport = MemoryTransport(asyncio.get_running_loop(), 1000, {"socket": sock})
        assert unread_bytes(transport) == 0

    run(main())


@pytest.mark.parametrize("service", [upper, slow])
def test_a_service_can_hang_up_after_its_reply(service: Service[bytes, bytes]) -> None:
    async def hang_up(req: bytes) -> bytes:
        peer = current_peer()
        assert peer is not None
        if req == b"quit":
            peer.close()
        return await service(req)

    async def main() -> None:
        for concurrency in (1, 2):
            async with serve(ANYWHERE, hang_up, Lines, concurrency=concurrency) as server:
                with await RawClient.connect(server) as client:
                    await client.send(b"a\nquit\n")
                    assert await client.rest() == b"A\nQUIT\n"
                if concurrency == 1:
                    with await RawClient.connect(server) as client:
                        await client.send(b"quit\nb\n")
                        assert await client.rest() == b"QUIT\n"

    run(main())


def test_an_idle_connection_can_be_closed_from_outside() -> None:
    async def main() -> None:
        peers: list[Peer] = []

        def make(peer: Peer) -> Service[bytes, bytes]:
            peers.append(peer)
            return upper

        async with serve(ANYWHERE, per_connection(make), Lines) as server:
            with await RawClient.connect(server) as client:
                await client.send(b"a\n")
                assert await client.receive(2) == b"A\n"
                assert peers[0].get_extra_info("socket") is not None
                assert peers[0].connection is None
                peers[0].close()
                assert await client.rest() == b""

    run(main())


def test_connections_above_the_limit_wait_in_the_backlog() -> None:
    async def main() -> None:
        async with serve(ANYWHERE, upper, Lines, max_connections=2) as server:
            with await RawClient.connect(server) as one, await RawClient.connect(server) as two:
                for client in (one, two):
                    await client.send(b"a\n")
                    await client.receive(2)
                assert server.status is Status.BUSY
                with await RawClient.connect(server) as three:
                    await three.send(b"b\n")
                    await one.send(b"c\n")
                    await one.receive(2)
                    assert server.connections == 2
                    one.sock.close()
                    assert await three.receive(2) == b"B\n"
            await until(lambda: server.status is Status.OPEN)

    run(main())


def test_a_server_without_descriptors_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serve(ANYWHERE, upper, Lines) as server:
            sock = socket.socket()
            sock.setblocking(False)
            used: list[int] = []
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 20, limits[1]))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        used.append(os.dup(0))
                address = server.sockets[0].getsockname()
                await asyncio.get_running_loop().sock_connect(sock, address)
                await until(lambda: server.status is Status.BUSY)
            finally:
                for fd in used:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            with RawClient(sock) as client:
                await client.send(b"a\n")
                assert await client.receive(2) == b"A\n"
            assert server.status is Status.OPEN

    run(main())
    assert "cannot accept connections on ('127.0.0.1'" in caplog.text


def test_it_listens_where_it_is_told_to(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        for address in (path, str(path), socket.create_server(ANYWHERE), ("localhost", 0)):
            async with serve(address, upper, Lines) as server:
                assert await exchange(server, b"a\n") == b"A\n"
                assert repr(server).startswith("<Server of test_") is False
        two = [socket.create_server(ANYWHERE), socket.create_server(ANYWHERE)]
        async with serve(two, upper, Lines) as server:
            assert len(server.sockets) == 2
            assert await exchange(server, b"a\n") == b"A\n"
        with pytest.raises(OSError, match=r"cannot listen on .* port 1"):
            async with serve(("192.0.2.1", 1), upper, Lines):
                pass
        with pytest.raises(OSError, match="cannot listen on /nowhere"):
            async with serve("/nowhere/at/all", upper, Lines):
                pass

    run(main())


def test_arguments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="max_connections"):
        serve(ANYWHERE, upper, Lines, max_connections=0)
    with pytest.raises(ValueError, match="concurrency"):
        serve(ANYWHERE, upper, Lines, concurrency=0)


# -- drain ---------------------------------------------------------------------------------------


def receive_until_end(client: socket.socket) -> None:
    while client.recv(1 << 16):
        pass


def test_a_drain_closes_in_order() -> None:
    async def main() -> None:
        held = Held()
        async with serve(ANYWHERE, held, Lines) as server:
            address = server.sockets[0].getsockname()
            with await RawClient.connect(server) as idle, await RawClient.connect(server) as busy:
                await busy.send(b"a\nb\n")
                await held.has_begun(b"a")
                assert server.status is Status.OPEN
                draining = server.start_draining(asyncio.get_running_loop().time() + LONG)
                # Before anything is waited for:
                assert server.sockets == ()
                assert server.status is Status.CLOSED
                with socket.socket() as late, pytest.raises(ConnectionRefusedError):
                    late.connect(address)
                assert await idle.rest() == b""
                assert not draining.done()
                assert held.closed == 0
                held.release(b"a")
                await held.has_begun(b"b")
                held.release(b"b")
                assert await busy.rest() == b"A\nB\n"
                busy.sock.close()
                await draining
                assert held.closed == 1
                assert server.cut_off == 0
                await server.drain()
        assert held.closed == 1
        with pytest.raises(RuntimeError, match="once"):
            async with server:
                pass

    run(main())


def test_a_request_that_has_arrived_when_the_drain_begins_is_answered() -> None:
    async def main() -> None:
        for service in (upper, slow):
            async with serve(ANYWHERE, service, Lines) as server:
                with await RawClient.connect(server) as old, await RawClient.connect(server) as new:
                    await until(lambda: server.connections == 2)
                    await old.send(b"x\n")
                    assert await old.receive(2) == b"X\n"
                    # The loop does not turn between these.
                    old.sock.send(b"a\n" * 1000)
                    new.sock.send(b"b\n")
                    server.start_draining()
                    assert await new.rest() == b"B\n"
                    assert await old.rest() == b"A\n" * 1000

    run(main())


def test_a_connection_that_is_being_opened_is_served_before_the_end() -> None:
    async def main() -> None:
        async with serve(ANYWHERE, upper, Lines) as server:
            with await RawClient.connect(server) as client:
                client.sock.send(b"a\n")
                await until(lambda: server.connections == 1)
                server.start_draining()
                assert await client.rest() == b"A\n"

    run(main())


def test_at_the_deadline_what_is_left_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for concurrency in (1, 2):
            held = Held()
            async with serve(ANYWHERE, held, Lines, concurrency=concurrency) as server:
                with await RawClient.connect(server) as client:
                    await client.send(b"a\n")
                    await held.has_begun(b"a")
                    server.start_draining()
                    await server.drain(asyncio.get_running_loop().time())
                    assert held.cancelled == [b"a"]
                    assert server.cut_off == 1
                    with pytest.raises(ConnectionResetError):
                        await client.rest()

    run(main())
    assert "1 connections were cut off" in caplog.text


def test_a_client_that_has_not_taken_its_reply_at_the_deadline_is_cut_off() -> None:
    async def main() -> None:
        async def long(_req: bytes) -> bytes:
            return bytes(40_000)  # more than TCP takes, and too little to hold up requests

        with socket.create_server(ANYWHERE) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            async with serve([listener], long, Lines, grace=0.01) as server:
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                client.connect(listener.getsockname())
                client.send(b"a\n")
                await until(lambda: server.connections == 1)
            assert server.cut_off == 1
            with client, pytest.raises(ConnectionResetError):
                receive_until_end(client)

    run(main())


def test_a_drain_gives_up_on_what_does_not_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stackmap.service._server.CANCEL_TIME", 0.01)

    async def main() -> None:
        stop = asyncio.Event()

        async def stubborn(_req: bytes) -> bytes:
            while not stop.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await stop.wait()
            return b""

        async with serve(ANYWHERE, stubborn, Lines, grace=0) as server:
            client = await RawClient.connect(server)
            await client.send(b"a\n")
            await until(lambda: server.connections == 1)
            await asyncio.sleep(0.01)
        stop.set()
        client.sock.close()

    run(main())
    assert "do not end although they were cancelled" in caplog.text


def test_a_drain_waits_for_masked_and_background_work() -> None:
    async def main() -> None:
        held = Held()
        later = asyncio.Event()

        async def service(req: bytes) -> bytes:
            background(wait_for(later))
            return await held(req)

        async def wait_for(event: asyncio.Event) -> None:
            await event.wait()

        async with serve(ANYWHERE, MaskCancel().and_then(service), Lines) as server:
            client = await RawClient.connect(server)
            await client.send(b"a\n")
            await held.has_begun(b"a")
            client.reset()
            await until(lambda: server.connections == 0)
            draining = server.start_draining(asyncio.get_running_loop().time() + LONG)
            for _ in range(20):
                await asyncio.sleep(0)
            assert not draining.done()
            held.release(b"a")
            for _ in range(20):
                await asyncio.sleep(0)
            assert not draining.done()
            later.set()
            await draining
            assert held.cancelled == []

    run(main())


def test_background_work_is_cancelled_at_the_deadline() -> None:
    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []

        async def service(req: bytes) -> bytes:
            tasks.append(background(asyncio.sleep(LONG)))
            return req

        async with serve(ANYWHERE, service, Lines, grace=0) as server:
            await exchange(server, b"a\n")
        assert tasks[0].cancelled()

    run(main())


class LoadClient:
    """Sends numbered requests in batches, some of them ahead of the replies."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sent = 0
        self.replies: list[bytes] = []

    def line(self, index: int) -> bytes:
        return b"%d-%d" % (self.number, index)

    async def run(self, server: Server[Any, Any]) -> None:
        with await RawClient.connect(server) as raw:
            sender = asyncio.create_task(self._send(raw))
            rest = b""
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.get_running_loop().sock_recv(raw.sock, 65536):
                    *lines, rest = (rest + data).split(b"\n")
                    self.replies += lines
            sender.cancel()
            await asyncio.wait([sender])
        assert rest == b""
        assert self.replies == [self.line(index) for index in range(len(self.replies))]

    async def _send(self, raw: RawClient) -> None:
        batch = self.number % 5 + 1
        with contextlib.suppress(ConnectionError):
            while True:
                lines = [self.line(self.sent + index) + b"\n" for index in range(batch)]
                raw.sock.send(b"".join(lines))
                self.sent += batch
                await asyncio.sleep(0)
                await until(lambda: self.sent - len(self.replies) <= 20)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_stopping_under_load_loses_no_request(concurrency: int) -> None:
    begun = answered = 0

    async def main(concurrency: int) -> None:
        class Counted(AnyFilter):
            async def __call__(self, req: Any, service: Service[Any, Any], /) -> Any:
                nonlocal begun, answered
                begun += 1
                reply = await service(req)
                answered += 1
                return reply

        chain = Counted().and_then(ConcurrencyLimit(20, 10**6)).and_then(echo_sometimes_slow)
        async with serve(ANYWHERE, chain, Lines, grace=LONG, concurrency=concurrency) as server:
            clients = [LoadClient(number) for number in range(60)]
            tasks = [asyncio.create_task(client.run(server)) for client in clients]
            await until(lambda: server.connections == 60 and answered > 2000)
            sent = [client.sent for client in clients]
            await server.drain()
            await asyncio.gather(*tasks)
        assert begun == answered == sum(len(client.replies) for client in clients)
        assert server.cut_off == 0
        for client, promised in zip(clients, sent, strict=True):
            assert len(client.replies) >= promised

    run(main(concurrency))


async def echo_sometimes_slow(req: bytes) -> bytes:
    for _ in range(len(req) % 3):
        await asyncio.sleep(0)
    return req


# -- TLS -----------------------------------------------------------------------------------------


def test_tls(tmp_path: Path) -> None:
    accepting, trusting = contexts(tmp_path)

    async def main() -> None:
        for service in (upper, slow):
            async with serve(ANYWHERE, service, Lines, ssl=accepting) as server:
                address = server.sockets[0].getsockname()
                # One that does not speak TLS ends no other.
                with await RawClient.connect(server) as stranger:
                    await stranger.send(b"GET / HTTP/1.0\r\n\r\n")
                    reader, writer = await asyncio.open_connection(*address, ssl=trusting)
                    writer.write(b"a\n" * 10000)
                    assert await reader.readexactly(20000) == b"A\n" * 10000
                    server.start_draining()
                    assert await reader.read() == b""
                    writer.close()
                    await writer.wait_closed()

    run(main())
