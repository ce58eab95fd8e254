"""Actors on rings: credit in ring slots, payload in ring pages, acknowledgements by the peer."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from typing import TYPE_CHECKING, Any

from stackmap import RingPort
from stackmap.actor import (
    ActorSystem,
    Buffer,
    Child,
    ConnectionActor,
    Listener,
    Passive,
    Payload,
    Signal,
)
from stackmap.aio import EventLoop
from tests.guest.wire import ADDRESS, NIC, in_peer_namespace
from tests.receiving import receive_exactly
from tests.unit.kv_actors import key_value_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

PATTERN = random.Random(1).randbytes(300_000)


def run(main: Callable[[socket.socket, socket.socket], Coroutine[Any, Any, None]]) -> None:
    """Run a program on rings; it gets a listening socket, and a peer that it may connect."""
    with RingPort(NIC, tx_slots=64, rx_slots=64, connections=16) as port:
        with socket.create_server((ADDRESS, 0)) as sock, in_peer_namespace() as peer:
            peer.settimeout(30)
            with asyncio.Runner(loop_factory=lambda: EventLoop(port)) as runner:
                runner.run(main(sock, peer))
        stats = port.stats()
    assert stats.rx_bytes + stats.tx_bytes > 0
    assert stats.socket_rx_bytes == stats.socket_tx_bytes == 0


def test_a_key_value_server() -> None:
    async def main(sock: socket.socket, peer: socket.socket) -> None:
        def client() -> bytes:
            peer.connect(sock.getsockname())
            peer.sendall(b"set a 1\nget a\nget b\ndel a\ncount\nquit\n")
            data = b""
            while more := peer.recv(1000):
                data += more
            return data

        async with ActorSystem() as system:
            await system.spawn(key_value_server(sock)).ready()
            assert await asyncio.to_thread(client) == b"ok\nvalue 1\nnone\nok\n0\n"

    run(main)


class Echo(ConnectionActor[Any, Payload, Buffer]):
    """Echoes; counts what lay in the ring, and how often its credit was used up."""

    mode: Any = "once"
    passive = 0
    on_ring = 0

    def connected(self) -> None:
        self.stream.active(self.mode)

    async def received(self, message: Payload) -> None:
        Echo.on_ring += message._held is not None
        await asyncio.sleep(0)  # beyond the exchange
        await self.send(message.view)

    def on_signal(self, signal: Signal) -> Awaitable[None] | None:
        if isinstance(signal, Passive):
            Echo.passive += 1
            self.stream.active(self.mode)
            return None
        return super().on_signal(signal)


def echo(mode: Any) -> None:
    async def main(sock: socket.socket, peer: socket.socket) -> None:
        def client() -> bytes:
            peer.connect(sock.getsockname())

            def send() -> None:
                peer.sendall(PATTERN)
                peer.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            data = receive_exactly(peer, len(PATTERN))
            assert peer.recv(1) == b""
            sender.join()
            return data

        Echo.mode = mode
        async with ActorSystem() as system:
            await system.spawn(Child(lambda: Listener(Echo, sock, capacity=4), 1)).ready()
            assert await asyncio.to_thread(client) == PATTERN

    run(main)


def test_credit_once() -> None:
    echo("once")
    assert Echo.passive > 10
    assert Echo.on_ring > 10


def test_credit_of_several_slots() -> None:
    echo(5)


def test_no_credit_needed() -> None:
    echo(True)


def test_a_passive_actor_holds_the_peer_back() -> None:
    class Deaf(ConnectionActor[bool, Payload, Buffer]):
        size = 0

        def received(self, message: Payload) -> None:
            self.size += len(message)

        def receive(self, message: bool) -> None:
            self.stream.active(message)

    async def main(sock: socket.socket, peer: socket.socket) -> None:
        deaf = Deaf()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)

        def flood() -> int:
            peer.connect(sock.getsockname())
            peer.settimeout(0.5)
            sent = 0
            try:
                while True:
                    sent += peer.send(PATTERN)
            except TimeoutError:
                return sent

        async with ActorSystem() as system:
            await system.spawn(Child(lambda: Listener(lambda: deaf, sock, capacity=4), 1)).ready()
            sent = await asyncio.to_thread(flood)
            assert deaf.size == 0
            deaf.ref.tell_nowait(True)
            peer.shutdown(socket.SHUT_WR)
            assert await deaf.ref.wait() is None
            assert deaf.size == sent

    run(main)


def test_the_peer_acknowledges() -> None:
    class Greeter(ConnectionActor[Any, Payload, Buffer]):
        async def connected(self) -> None:
            await self.send(b"hello").acknowledged()
            self.stop()

    async def main(sock: socket.socket, peer: socket.socket) -> None:
        def client() -> bytes:
            peer.connect(sock.getsockname())
            return receive_exactly(peer, 5)

        greeters: list[Greeter] = []

        def make() -> Greeter:
            greeters.append(Greeter())
            return greeters[-1]

        async with ActorSystem() as system:
            await system.spawn(Child(lambda: Listener(make, sock, capacity=4), 1)).ready()
            assert await asyncio.to_thread(client) == b"hello"
            assert await greeters[0].ref.wait() is None

    run(main)
