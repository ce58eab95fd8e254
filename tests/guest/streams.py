"""Streams of checked bytes in both directions, between connections on rings and sockets."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from stackmap import Connection, Event
from tests.guest.pattern import pattern

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from stackmap import RingConnection, RingPort

PATIENCE = 120.0
CHUNK = 16384
#: Bytes that a connection on rings may have queued beyond those that TCP took.
QUEUED = 1 << 17


class End(ABC):
    """One end of a connection: what it has sent of its own stream, and heard of the other's."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.sent = 0
        self.heard = 0

    @property
    def done(self) -> bool:
        return self.sent == self.heard == self.size

    @abstractmethod
    def step(self) -> None:
        """Send what can be sent now, and take what a socket has."""

    def more(self) -> bytes:
        """The bytes to send next."""
        return pattern(self.number, self.sent, min(CHUNK, self.size - self.sent))

    def hear(self, data: bytes) -> None:
        """Check what has come."""
        assert data == pattern(self.number ^ 1, self.heard, len(data)), (
            f"end {self.number} heard wrong bytes in {len(data)} from {self.heard} on"
        )
        self.heard += len(data)
        assert self.heard <= self.size


class RingEnd(End):
    """An end that is attached to a port."""

    def __init__(self, number: int, size: int, connection: RingConnection) -> None:
        super().__init__(number, size)
        self.connection = connection

    def step(self) -> None:
        while self.sent < self.size and self.connection.pending < QUEUED:
            data = self.more()
            self.connection.write(data)
            self.sent += len(data)


class SocketEnd(End):
    """An end that is an ordinary socket."""

    def __init__(self, number: int, size: int, sock: socket.socket) -> None:
        super().__init__(number, size)
        sock.setblocking(False)
        self.sock = sock

    def step(self) -> None:
        try:
            while self.sent < self.size:
                self.sent += self.sock.send(self.more())
        except BlockingIOError:
            pass
        try:
            while data := self.sock.recv(1 << 16):
                self.hear(data)
        except BlockingIOError:
            pass


def carry(
    port: RingPort, lines: Sequence[tuple[RingConnection, RingConnection | socket.socket]],
    size: int,
) -> None:  # fmt: skip
    """Send so many bytes each way on each connection; ``lines`` has the two ends of each.

    The first end of each is on the port, the second there too or an ordinary socket.
    """
    rings: dict[Connection, RingEnd] = {}
    socks: list[SocketEnd] = []
    for number, (one, other) in enumerate(lines):
        rings[one] = RingEnd(2 * number, size, one)
        if isinstance(other, Connection):
            rings[other] = RingEnd(2 * number + 1, size, other)
        else:
            socks.append(SocketEnd(2 * number + 1, size, other))
    ends = [*rings.values(), *socks]
    last, changed = 0, time.monotonic()
    while not all(end.done for end in ends):
        for end in ends:
            end.step()
        for segment in port.exchange(0.005):
            assert segment.event in (Event.NONE, Event.WRITABLE), segment
            if not segment.event:
                rings[segment.connection].hear(bytes(segment.view))
        heard = sum(end.heard for end in ends)
        if heard != last:
            last, changed = heard, time.monotonic()
        progress = [(end.number, end.sent, end.heard) for end in ends]
        assert time.monotonic() < changed + PATIENCE, f"nothing moves: {progress}"
