"""A client that an actor's codec turns away reads why, although it goes on sending."""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING, Any, Never

import pytest

from stackmap import SocketPort
from stackmap.actor import ActorSystem, Child, ConnectionActor, Listener
from stackmap.aio import EventLoop
from stackmap.codec import Lines, RemoteProtocolError
from stackmap.testing import VirtualClock, memory_pair
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from stackmap.codec import Buffer

REFUSAL = b"a line has at most 100 bytes\n"
BYE = b"bye\n"


class ShortLines(Lines):
    """Lines of up to 100 bytes; a longer one is refused, and ``quit`` ends the connection."""

    def __init__(self) -> None:
        super().__init__(max_length=100)
        self.quit = False

    def next_message(self) -> bytes | None:
        try:
            return super().next_message()
        except RemoteProtocolError as error:
            raise RemoteProtocolError(str(error), [REFUSAL]) from error

    def send(self, message: Buffer) -> list[Buffer]:
        self.quit = message == b"bye"
        return super().send(message)

    @property
    def must_close(self) -> bool:
        return self.quit


class Session(ConnectionActor[Never, bytes, bytes]):
    def connected(self) -> None:
        self.stream.active(True)

    def received(self, message: bytes) -> None:
        self.send(b"bye" if message == b"quit" else message)


class OneSlot(Session):
    def connected(self) -> None:
        self.stream.active("once")


def send_much_and_read(address: tuple[str, int], first: bytes) -> bytes:
    with socket.create_connection(address, 30) as sock:
        sock.sendall(first)
        for _ in range(100):
            sock.sendall(bytes(10_000))
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(1000):
            received += data
    return received


@pytest.mark.parametrize("session", [Session, OneSlot])
@pytest.mark.parametrize(("first", "answer"), [(b"x" * 101, REFUSAL), (b"quit\n", BYE)])
@pytest.mark.parametrize("on_port", [False, True])
def test_over_tcp(session: type[Session], first: bytes, answer: bytes, on_port: bool) -> None:
    async def main() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with ActorSystem() as system:
                listener: Listener[bytes, bytes] = Listener(
                    session, sock, capacity=1, codec=ShortLines
                )
                await system.spawn(Child(lambda: listener, capacity=1)).ready()
                return await asyncio.to_thread(send_much_and_read, sock.getsockname(), first)

    with SocketPort() as port:
        factory = functools.partial(EventLoop, port) if on_port else None
        with asyncio.Runner(loop_factory=factory) as runner:
            assert runner.run(main()) == answer


class Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def data_received(self, data: bytes) -> None:
        self.events.append(data)

    def eof_received(self) -> bool:
        self.events.append("eof")
        return True


@pytest.mark.parametrize(("first", "answer"), [(b"x" * 101, REFUSAL), (b"quit\n", BYE)])
@pytest.mark.parametrize("hangs_up", [True, False])
def test_it_has_a_second_to_hang_up(first: bytes, answer: bytes, hangs_up: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ActorSystem() as system:
            client = Client()
            protocol = system.protocol(Child(Session, capacity=1), ShortLines)
            _near, far = memory_pair(protocol, client)
            far.write(first)
            await asyncio.sleep(0.5)
            assert client.events == [answer, "eof"]
            assert protocol.ref.alive
            for _ in range(100):
                far.write(bytes(10_000))
                await asyncio.sleep(0.001)
            assert far.get_write_buffer_size() == 0  # it is read, and dropped
            assert loop.time() < 1.0
            if hangs_up:
                far.write_eof()
                await asyncio.sleep(0.001)
            else:
                await asyncio.sleep(0.5)
            assert not protocol.ref.alive

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        runner.run(main())


def test_a_client_that_has_hung_up_already_is_not_waited_for() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ActorSystem() as system:
            client = Client()
            protocol = system.protocol(Child(Session, capacity=1), ShortLines)
            _near, far = memory_pair(protocol, client)
            far.write(b"quit\n")
            far.write_eof()
            assert await protocol.ref.wait() is None
            await asyncio.sleep(0.001)
            assert loop.time() < 0.1
            assert client.events == [BYE, "eof"]

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        runner.run(main())


def test_the_system_does_not_wait_longer_than_its_deadline() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with ActorSystem(grace=0.2) as system:
            protocol = system.protocol(Child(Session, capacity=1), ShortLines)
            _near, far = memory_pair(protocol, Client())
            far.write(b"x" * 101)
            await asyncio.sleep(0.1)
        return loop.time()

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        assert runner.run(main()) == pytest.approx(0.3)


def test_a_reset_that_is_noticed_only_when_it_is_refused() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with ActorSystem() as system:
                # Without a reply there is no write before the FIN.
                child = Child(Session, capacity=1)
                protocol = system.protocol(child, lambda: Lines(max_length=100))
                client = socket.create_connection(sock.getsockname())
                near, _address = sock.accept()
                near.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.connect_accepted_socket(lambda: protocol, near)
                reset_on_close(client)
                client.close()
                protocol.data_received(b"x" * 101)
                assert await protocol.ref.wait() is None

    asyncio.run(main())
