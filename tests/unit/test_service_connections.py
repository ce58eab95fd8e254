"""Connections of a server: back-pressure, factories, limits, addresses, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING, Any

import pytest

from stackmap.codec import Lines
from stackmap.service import (
    ConcurrencyLimit,
    Peer,
    Service,
    ServiceFactory,
    Status,
    Timeout,
    current_peer,
    per_connection,
    serve,
)
from tests.certificate import contexts

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
    from pathlib import Path


# -- back-pressure ---------------------------------------------------------------------------------


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


# -- connections -----------------------------------------------------------------------------------


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


def test_a_client_that_is_gone_can_be_reset() -> None:
    peers: list[Peer] = []

    async def cut_off(_req: bytes) -> bytes:
        peer = current_peer()
        assert peer is not None
        peers.append(peer)
        peer.abort()
        return b"half a reply"

    async def main() -> None:
        async with serve(ANYWHERE, cut_off, Lines) as server:
            with await RawClient.connect(server) as client:
                await client.send(b"request\n")
                with pytest.raises(ConnectionResetError):
                    await client.rest()
                peers[0].abort()

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


# -- TLS -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("address", "codec", "complaint"),
    [
        (ANYWHERE, Lines(), "give a class or a function that makes codecs, not a Lines"),
        (9000, Lines, "give host and port, a path or sockets as an address, not 9000"),
        (("localhost",), Lines, "give host and port, a path or sockets as an address"),
    ],
)
def test_wrong_arguments_are_refused_at_once(address: Any, codec: Any, complaint: str) -> None:
    async def main() -> None:
        async with serve(address, upper, codec):
            pass

    with pytest.raises(TypeError, match=complaint):
        run(main())
