# ruff: noqa: F811 (a fixture is imported, and parameters are named after it)
"""Every end of a connection in every state that it can be in: which events come, and what is left.

Held to several backends as ``test_port_contract.py`` is.  Two ends are not here, because without
rights nobody can bring them about on the loopback device: an ICMP error, and a NIC that goes away
(``tests/guest/test_ends.py`` has them).  All others exist in all states.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from stackmap import Event, Port, SocketPort
from tests.unit.link import (  # noqa: F401 (a fixture, used by name)
    PATIENCE,
    PATTERN,
    Link,
    reset,
    socket_pair,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
ESTABLISHED, CLOSE, CLOSE_WAIT = 1, 7, 8
#: Fits into the first congestion window, and not into the receive ring of a small port.
MUCH = 14_000
LITTLE = 1000
#: A segment without payload is no larger, with all options.
ACK_SIZE = 60
#: TCP_USER_TIMEOUT, in milliseconds.
GIVE_UP_MS = 500


@dataclass(frozen=True)
class State:
    """The state that a connection is in when it ends."""

    paused: bool
    #: What has arrived and the application has not seen: "some" waits in TCP, "much" has filled the
    #: receive ring as well, if the backend has one.
    unread: str
    #: What has been written: "in flight" waits for its ACK, "queued" for TCP to take it, too.
    unsent: str

    def __str__(self) -> str:
        reading = "paused" if self.paused else "reading"
        return f"{reading}, {self.unread} unread, {self.unsent} unsent"


STATES = [
    State(*values)
    for values in itertools.product(
        (False, True), ("nothing", "some", "much"), ("nothing", "in flight", "queued")
    )
    if values[:2] != (False, "some")  # a connection that reads has it in its ring, as of "much"
]


class Cell:
    """A connection in a state, whose end is to come."""

    def __init__(self, port: Port, peer: socket.socket, sock: socket.socket, state: State) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        self.state = state
        self.port = port
        self.peer = peer
        self.sock = sock
        self.connection = port.attach(sock)
        self.link = Link(port, peer, self.connection)
        self.written = b"hello"
        self.read = b""
        self.sent = PATTERN[: {"nothing": 0, "some": LITTLE, "much": MUCH}[state.unread]]
        self.connection.write(self.written)
        self.link.hear()
        self.link.until(self._greeted)
        peer.setblocking(False)

    def _greeted(self) -> bool:
        return self.tcp_info("B") == ESTABLISHED and not self.tcp_info("=24xI")

    def tcp_info(self, layout: str) -> int:
        """A number from struct tcp_info of the connection."""
        size = 256
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        value: int = struct.unpack_from(layout, info)[0]
        return value

    def enter(self) -> None:
        """Bring the connection into its state."""
        state = self.state
        if state.unsent != "nothing":
            self.deafen(ACK_SIZE)  # what the peer sends is acknowledged, and what it is sent is not
            self.write(LITTLE)
            while state.unsent == "queued" and not self.connection.pending:
                self.write(65536)
        if state.paused and state.unread != "much":
            self.connection.pause_reading()
        if self.sent:
            self.peer.sendall(self.sent)
            eventually(
                lambda: self.tcp_info("=128xQ") == len(self.sent),
                lambda: (self.tcp_info("=128xQ"), len(self.sent)),
                patience=PATIENCE,
            )
        if state.paused:
            self.connection.pause_reading()
        assert self.link.story == []
        assert bool(self.connection.pending) == (state.unsent == "queued")

    def write(self, size: int) -> None:
        self.connection.write(PATTERN[:size])
        self.written += PATTERN[:size]
        self.link.hear()

    def deafen(self, largest: int = 0) -> None:
        """Let the peer get no segment of more bytes than this, header included."""
        # BPF: load the length; if it is greater, keep nothing; else all.
        steps = [(0x80, 0, 0, 0), (0x25, 0, 1, largest), (6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
        program = struct.pack("HL", len(steps), ctypes.addressof(code))
        self.peer.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def await_state(self, state: int) -> None:
        """Wait until TCP knows of the end."""
        eventually(
            lambda: self.tcp_info("B") == state, lambda: self.tcp_info("B"), patience=PATIENCE
        )

    def let_peer_read(self) -> None:
        """Let the peer have what it can get now."""
        with suppress(OSError):
            self.peer.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        with suppress(OSError):
            while data := self.peer.recv(1 << 20):
                self.read += data

    def await_peer_has_all(self) -> None:
        """Wait until the peer has read all that was written."""

        def has_all() -> bool:
            self.let_peer_read()
            return self.read == self.written

        eventually(has_all, lambda: (len(self.read), len(self.written)), patience=PATIENCE)

    def until(self, done: Callable[[], bool]) -> None:
        """Exchange, while the peer reads."""

        def look() -> bool:
            self.let_peer_read()
            return done()

        self.link.until(look)

    def until_closed(self) -> None:
        self.until(lambda: Event.CLOSED in self.link.events())

    def told(self) -> list[bytes | tuple[Event, int]]:
        """The port's segments, without WRITABLE; adjacent bytes are joined."""
        story: list[bytes | tuple[Event, int]] = []
        for entry in self.link.story:
            last = story[-1] if story else None
            if isinstance(entry, bytes) and isinstance(last, bytes):
                story[-1] = last + entry
            elif entry != (Event.WRITABLE, 0):
                story.append(entry)
        return story

    def check_received(self, *events: tuple[Event, int], whole: bool) -> None:
        """All, or a first part, of what the peer sent was received, and then came these events."""
        for _ in range(3):
            self.link.hear(0.01)
        story = self.told()
        data = self.link.received()
        assert story == [data][: len(data)] + list(events)
        assert data == (self.sent if whole else self.sent[: len(data)])


@pytest.fixture
def small_port() -> Iterator[Port]:
    """A port, which may hold nothing of its connections any more when the test is over."""
    with SocketPort() as port:
        yield port
        assert not port._connections
        assert not port._events


@pytest.fixture(params=STATES, ids=str)
def cell(
    request: pytest.FixtureRequest,
    small_port: Port,
    socket_pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> Iterator[Cell]:
    peer, sock = socket_pair()
    cell = Cell(small_port, peer, sock, request.param)
    cell.enter()
    with peer:
        yield cell
        assert cell.connection.pending == 0
        assert sock.fileno() == -1
        # Only where all of the queue is sent, and the connection is not closed behind it.
        emptied = request.function is test_half_close_on_both_sides
        writable = cell.link.events().count(Event.WRITABLE)
        assert writable == (emptied and cell.state.unsent == "queued")
        cell.let_peer_read()


def check_failure(cell: Cell, code: int) -> None:
    """Received data comes before the failure, but not if reading is paused."""
    cell.link.until_event(Event.CLOSED)
    cell.check_received((Event.ERROR, code), (Event.CLOSED, 0), whole=not cell.state.paused)
    cell.connection.write(b"too late, but no error")
    assert cell.connection.pending == 0


def test_reset(cell: Cell) -> None:
    reset(cell.peer)
    cell.await_state(CLOSE)
    check_failure(cell, errno.ECONNRESET)


def test_timeout(cell: Cell) -> None:
    cell.deafen()
    give_up_soon(cell.sock)
    cell.await_state(CLOSE)
    check_failure(cell, errno.ETIMEDOUT)


def give_up_soon(sock: socket.socket) -> None:
    """Let TCP notice that the peer is not there, whether it has something to send or not."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GIVE_UP_MS)


def test_fin(cell: Cell) -> None:
    """It is told behind the data, and so not while reading is paused."""
    cell.peer.shutdown(socket.SHUT_WR)
    cell.await_state(CLOSE_WAIT)
    if cell.state.paused:
        cell.check_received(whole=False)
        cell.connection.resume_reading()
    cell.link.until_event(Event.EOF)
    cell.check_received((Event.EOF, 0), whole=True)
    cell.connection.close()
    cell.until_closed()
    cell.check_received((Event.EOF, 0), (Event.CLOSED, 0), whole=True)
    cell.await_peer_has_all()


def test_fin_and_reset(cell: Cell) -> None:
    """The peer is closed with what it was sent unread, or the process that had it is gone."""
    cell.peer.shutdown(socket.SHUT_WR)
    cell.await_state(CLOSE_WAIT)
    reset(cell.peer)
    cell.await_state(CLOSE)
    cell.link.until_event(Event.CLOSED)
    eof = [] if cell.state.paused else [(Event.EOF, 0)]
    cell.check_received(
        *eof, (Event.ERROR, errno.EPIPE), (Event.CLOSED, 0), whole=not cell.state.paused
    )


def test_close(cell: Cell) -> None:
    cell.connection.close()
    cell.until_closed()
    for _ in range(3):
        cell.link.hear(0.01)
    assert cell.told() == [(Event.CLOSED, 0)]
    if cell.state.unread == "nothing":
        cell.await_peer_has_all()


def test_close_and_reset(cell: Cell) -> None:
    """Data not yet sent is lost, which is reported if it was in the queue."""
    cell.connection.close()
    reset(cell.peer)
    cell.link.until_event(Event.CLOSED)
    for _ in range(3):
        cell.link.hear(0.01)
    failed = cell.state.unsent == "queued"
    assert cell.told() == [(Event.ERROR, errno.ECONNRESET)] * failed + [(Event.CLOSED, 0)]


def test_half_close_on_both_sides(cell: Cell) -> None:
    cell.connection.shutdown_write()
    cell.link.hear(0.01)  # on rings the FIN goes with the next exchange
    cell.until(lambda: cell.read == cell.written)
    cell.peer.shutdown(socket.SHUT_WR)
    cell.await_state(CLOSE)
    if cell.state.paused:
        cell.check_received(whole=False)
        cell.connection.resume_reading()
    cell.until_closed()
    cell.check_received((Event.EOF, 0), (Event.CLOSED, 0), whole=True)


def test_abort(cell: Cell) -> None:
    cell.connection.abort()
    cell.until_closed()
    for _ in range(3):
        cell.link.hear(0.01)
    assert cell.told() == [(Event.CLOSED, 0)]


def test_port_closed(cell: Cell) -> None:
    cell.port.close()
    with pytest.raises(ValueError, match="closed"):
        cell.port.exchange()
    assert cell.told() == []
