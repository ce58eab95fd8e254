"""How a server ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from stackmap.codec import Lines
from stackmap.service import (
    AnyFilter,
    ConcurrencyLimit,
    MaskCancel,
    Service,
    Status,
    background,
    serve,
)
from stackmap.service._connection import unread_bytes
from stackmap.testing import MemoryTransport

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
    from stackmap.service import Server


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


def test_a_drain_leaves_a_connection_alone_whose_socket_is_closed() -> None:
    """On a port the socket is closed a turn before connection_lost() is called."""

    async def main() -> None:
        sock = socket.socket()
        sock.close()
        transport = MemoryTransport(asyncio.get_running_loop(), 1000, {"socket": sock})
        assert unread_bytes(transport) == 0

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
