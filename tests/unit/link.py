"""A port with a connection, whose other end the test has; the fixtures of all contracts.

The fixtures ``port_factory``, ``socket_pair`` and ``listening`` choose the backend.  To hold
another one to the contracts, import everything from their files into a module that has its own.
"""

from __future__ import annotations

import fcntl
import re
import socket
import time
from contextlib import suppress
from termios import FIONREAD
from typing import TYPE_CHECKING

import pytest

from stackmap import Connection, Event, Port, Segment, SocketPort
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 100.0
PATTERN = bytes(range(251)) * 4096

Pair = tuple[socket.socket, socket.socket]
Listening = tuple[socket.socket, "Callable[[], socket.socket]"]


@pytest.fixture
def port_factory() -> Callable[[], Port]:
    """Makes ports of the backend under test."""
    return SocketPort


@pytest.fixture
def socket_pair() -> Callable[[], Pair]:
    """Makes established connections; the first socket is the peer's, the second is for a port."""

    def connect() -> Pair:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            accepted, _address = listener.accept()
        peer.settimeout(PATIENCE)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer, accepted

    return connect


@pytest.fixture
def listening() -> Callable[[], Listening]:
    """Makes listening sockets, each with a function that connects to it."""

    def listen() -> Listening:
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        return listener, lambda: socket.create_connection(address, PATIENCE)

    return listen


class Link:
    """An attached connection and its peer, and everything the port said about it so far."""

    def __init__(self, port: Port, peer: socket.socket, connection: Connection) -> None:
        self.port = port
        self.peer = peer
        self.connection = connection
        #: Received bytes and events in order; adjacent bytes are joined.
        self.story: list[bytes | tuple[Event, int]] = []

    def hear(self, timeout: float = 0.0) -> None:
        """Exchange once."""
        for segment in self.port.exchange(timeout):
            self.take(segment)

    def take(self, segment: Segment) -> None:
        if segment.connection is not self.connection:
            return
        if segment.event:
            self.story.append((segment.event, segment.errno))
        elif self.story and isinstance(self.story[-1], bytes):
            self.story[-1] += bytes(segment.view)
        else:
            self.story.append(bytes(segment.view))

    def until(self, done: Callable[[], bool]) -> None:
        """Exchange until ``done``."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, (
                f"still waiting, after {self.summary()}{self.state()}"
            )
            self.hear(0.05)

    def until_event(self, event: Event) -> None:
        self.until(lambda: event in self.events())

    def events(self) -> list[Event]:
        return [entry[0] for entry in self.story if not isinstance(entry, bytes)]

    def received(self) -> bytes:
        return b"".join(entry for entry in self.story if isinstance(entry, bytes))

    def summary(self) -> list[object]:
        return [f"{len(e)} bytes" if isinstance(e, bytes) else e for e in self.story]

    def state(self) -> str:
        """Return where bytes may be, for a test that fails."""
        lines = [repr(self.connection), f"{self.connection.unsent} unsent", str(self.port.stats())]
        with suppress(AttributeError, OSError):  # only rings have it
            lines.append(str(self.connection.tcp_state()))  # type: ignore[attr-defined]
        for sock in (self.connection.sock, self.peer):
            with suppress(OSError):
                lines.append(f"unread: {fcntl.ioctl(sock, FIONREAD, bytes(4)).hex()}")
                lines.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256).hex(" ", 4))
        return "\n".join(("", *lines))

    def read_peer(self, size: int) -> bytes:
        """Read exactly ``size`` bytes on the peer's side, while the port goes on."""
        self.peer.setblocking(False)
        data = bytearray()

        def all_there() -> bool:
            while len(data) < size:
                try:
                    got = self.peer.recv(min(1 << 20, size - len(data)))
                except BlockingIOError:
                    return False
                assert got, f"the peer saw the end after {len(data)} bytes"
                data.extend(got)
            return True

        self.until(all_there)
        self.peer.settimeout(PATIENCE)
        return bytes(data)

    def fill(self) -> int:
        """Write until the backend cannot take more; returns how many bytes were written."""
        written = 0
        while self.connection.pending < 4 << 20:
            self.connection.write(PATTERN)
            written += len(PATTERN)
            self.hear()
            assert written < 1 << 30
        return written


def reset(peer: socket.socket) -> None:
    """Close with RST."""
    reset_on_close(peer)
    peer.close()


@pytest.fixture
def port(port_factory: Callable[[], Port]) -> Iterator[Port]:
    with port_factory() as opened:
        yield opened


@pytest.fixture
def make_link(port: Port, socket_pair: Callable[[], Pair]) -> Iterator[Callable[[], Link]]:
    links = []

    def make() -> Link:
        peer, sock = socket_pair()
        links.append(Link(port, peer, port.attach(sock)))
        return links[-1]

    yield make
    for link in links:
        link.peer.close()


@pytest.fixture
def link(make_link: Callable[[], Link]) -> Link:
    return make_link()


def one_segment(link: Link) -> Segment:
    deadline = time.monotonic() + PATIENCE
    while True:
        segments = [s for s in link.port.exchange(0.05) if not s.event]
        if segments:
            return segments[0]
        assert time.monotonic() < deadline


def refuses(code: int, sentence: str) -> pytest.RaisesExc[OSError]:
    """An OSError with this errno and exactly this text."""
    return pytest.raises(OSError, match=re.escape(f"[Errno {code}] {sentence}") + "$")
