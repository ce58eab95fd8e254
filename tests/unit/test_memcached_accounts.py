"""Memory runs short in the memcached server: who holds none of it loses nothing."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackmap._sockets import SocketPort
from stackmap.memcached import Server
from stackmap_testbed.memcached.conformance import Conversation
from tests.unit.test_memcached_ends import MODELS, serving
from tests.unit.test_memcached_memory import (
    NO_MEMORY,
    NO_ROOM_FOR_LINE,
    is_reset,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap.memcached.actors import ActorServer
    from stackmap.memcached.service import ServiceServer

    Model = type[Server | ServiceServer | ActorServer]

MEMORY = 1 << 20
CLIENTS = 4
#: Asked for by those that do not read, and sent in pieces of 32 KiB.
BIG = 96 << 10
NOTHING = b"get nothing\r\n"

Action = Literal["store", "begin a value", "begin a line", "do not read"]
STEPS = st.lists(
    st.tuples(
        st.integers(0, CLIENTS - 1),
        st.sampled_from(("store", "begin a value", "begin a line", "do not read")),
        st.integers(1, 600_000),
    ),
    max_size=12,
)


class Client:
    """A client that may have begun something that takes memory of the server."""

    def __init__(self, address: tuple[str, int], number: int) -> None:
        self._address = address
        self._key = b"value%d" % number
        self._connect()

    def _connect(self) -> None:
        self._sock = socket.socket()
        self._sock.settimeout(60)
        # So that the server keeps what is unread, not the kernel.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._sock.connect(self._address)
        self._replies = self._sock.makefile("rb")
        self.begun: Action | None = None
        self._missing = b""

    def close(self) -> None:
        self._replies.close()
        self._sock.close()

    def check(self) -> None:
        """It holds nothing, so it is served."""
        self._sock.sendall(b"version\r\n")
        assert self._replies.readline().startswith(b"VERSION ")

    def begin(self, action: Action, size: int) -> None:
        """Have the server hold ``size`` bytes, or what the kernel does not take of replies."""
        self.begun = action
        if action in {"store", "begin a value"}:
            self._sock.sendall(b"set %b 0 0 %d\r\n" % (self._key, size + 1000) + bytes(size))
            self._missing = bytes(1000) + b"\r\n"
        elif action == "begin a line":
            self._sock.sendall(b"get" + b" k" * (size // 2))
            self._missing = b" k\r\n"
        else:
            self._sock.sendall(b"get big\r\n" * 10)
            self._missing = b"version\r\n"

    def finish(self) -> None:
        """End what was begun: it was done, or given up with the right words."""
        action, self.begun = self.begun, None
        if action in {"store", "begin a value"}:
            self._sock.sendall(self._missing)
            assert self._replies.readline() in {b"STORED\r\n", NO_MEMORY}
            return
        try:
            self._sock.sendall(self._missing)
            if action == "begin a line":
                reply = self._replies.readline()
                assert reply in {b"END\r\n", NO_ROOM_FOR_LINE}
                lost = reply == NO_ROOM_FOR_LINE
            else:
                lost = not any(line.startswith(b"VERSION ") for line in self._replies)
        except ConnectionError:
            lost = True
        if lost:
            self.close()
            self._connect()

    def read(self, size: int) -> None:
        """Take so much of the replies."""
        assert len(self._replies.read(size)) == size

    def is_reset(self) -> bool:
        """The server has disconnected it."""
        return is_reset(self._sock)


@contextlib.contextmanager
def crowd(model: Model, count: int) -> Iterator[tuple[list[Client], Conversation]]:
    """So many clients of a server that has little memory, as have its sockets, and another client.

    Those that it hangs up on connect again, before it has forgotten them.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        port = stack.enter_context(SocketPort())
        stack.enter_context(serving(port, listener, model, MEMORY, 2 * count + 1))
        address = listener.getsockname()
        clients = [
            stack.enter_context(contextlib.closing(Client(address, number)))
            for number in range(count)
        ]
        other = stack.enter_context(contextlib.closing(Conversation(address)))
        assert other.ask(b"set big 0 0 %d\r\n%b\r\n" % (BIG, bytes(BIG))) == b"STORED\r\n"
        yield clients, other


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=40)
@given(steps=STEPS)
def test_clients_that_hold_nothing_are_served(
    model: Model, steps: list[tuple[int, Action, int]]
) -> None:
    with crowd(model, CLIENTS) as (clients, other):
        for number, action, size in steps:
            client = clients[number]
            if client.begun is not None:
                client.finish()
            else:
                client.begin(action, size)
                assert other.ask(NOTHING) == b"END\r\n"
                if action == "store":
                    client.finish()
            for each in clients:
                if each.begun is None:
                    each.check()
        for client in clients:
            if client.begun is not None:
                client.finish()
            client.check()
        wait_until(other, range(1))


def test_a_slow_reader_that_reads_outlives_one_that_does_not() -> None:
    """The service and the actors look for what was taken once a second only."""
    with crowd(Server, 40) as ((slow, idle, *more), other):
        for client in (slow, idle):
            client.begin("do not read", 0)
            assert other.ask(NOTHING) == b"END\r\n"
        # More than the kernel holds, and less than waits in the server.
        slow.read(20_000)
        for client in more:
            client.begin("do not read", 0)
            assert other.ask(NOTHING) == b"END\r\n"
            # By now, what the server did after that answer has come to its connections.
            assert other.ask(NOTHING) == b"END\r\n"
            if idle.is_reset() or slow.is_reset():
                break
        assert (slow.is_reset(), idle.is_reset()) == (False, True)
        assert not any(client.is_reset() for client in more)
