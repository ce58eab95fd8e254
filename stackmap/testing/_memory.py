"""Two connected transports in memory, whose deliveries a test may control."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_BUFFERS: tuple[type, ...] = (bytes, bytearray, memoryview)
_HIGH = 64 << 10
_DEFAULT_WINDOW = 64 << 10


class MemoryTransport(asyncio.Transport):
    """One end of a connection that never leaves the process; :func:`memory_pair` makes two.

    It keeps to the contract of asyncio's selector transports: nothing is delivered while reading
    is paused, writes beyond the peer's window wait here, and the protocol is paused and resumed at
    the limits of the write buffer.

    Attributes:
        chunk: the most bytes that one ``data_received()`` is given.
        automatic: deliver to the peer whenever possible; else only :meth:`deliver` does.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, window: int, extra: dict[str, Any] | None = None
    ) -> None:
        super().__init__(extra)
        self.chunk = 256 << 10
        self.automatic = True
        self._loop = loop
        self._window = window
        self._protocol: asyncio.BaseProtocol | None = None
        self._peer: MemoryTransport | None = None
        # Written, and beyond the peer's window; then what is within it.
        self._unsent: deque[bytes] = deque()
        self._unsent_size = 0
        self._in_flight = bytearray()
        self._high, self._low = _HIGH, _HIGH // 4
        self._protocol_paused = False
        self._reading = True
        self._scheduled = False
        self._eof = self._eof_delivered = False
        self._closing = self._lost = False

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<MemoryTransport, {state}, {self.in_flight} bytes in flight>"

    # -- for tests -------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Bytes within the peer's window that were not delivered to it."""
        return len(self._in_flight)

    def deliver(self, size: int | None = None) -> int:
        """Deliver up to ``size`` bytes to the peer now, in one piece; by default a :attr:`chunk`.

        The end of the stream follows the last byte.

        Returns:
            How many bytes were delivered: 0 if the peer does not read, or nothing is in flight.
        """
        peer = self._peer
        if peer is not None and peer._lost and (self._in_flight or self._unsent):
            self._lose(ConnectionResetError("the peer closed the connection"))
        if peer is None or not peer.is_reading():
            return 0
        data = bytes(self._in_flight[: self.chunk if size is None else size])
        if data:
            del self._in_flight[: len(data)]
            _receive(peer._protocol, data)
            self._fill_window()
        at_end = self._eof and not (self._in_flight or self._unsent or self._eof_delivered)
        if at_end and peer.is_reading():
            self._eof_delivered = True
            peer._receive_eof()
        return len(data)

    def lose(self, error: OSError | None = None) -> None:
        """Have the connection fail at both ends, as a reset does; what is in flight is lost."""
        for end in (self, self._peer):
            if end is not None:
                end._lose(error)

    # -- asyncio.Transport -----------------------------------------------------------------------

    def is_closing(self) -> bool:
        """The transport is closed or closing."""
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol receive."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that receives."""
        assert self._protocol is not None, "the transport is closed"
        return self._protocol

    def is_reading(self) -> bool:
        """What arrives is delivered."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`.  Idempotent."""
        self._reading = False

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`.  Idempotent."""
        self._reading = True
        if self._peer is not None:
            self._peer._schedule()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say at which sizes of the write buffer, in bytes, the protocol is paused and resumed."""
        if high is None:
            high = _HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"write limits must be 0 <= low <= high, not {low} and {high}")
        self._high, self._low = high, low
        self._pause_or_resume_protocol()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high limit, in bytes."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Bytes that are beyond the peer's window."""
        return self._unsent_size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, of which a copy is made.

        Raises:
            TypeError: it is not bytes, a bytearray or a memoryview.
            RuntimeError: after :meth:`write_eof`.
        """
        if not isinstance(data, _BUFFERS):
            raise TypeError(f"data must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof and not self._lost:
            raise RuntimeError("Cannot call write() after write_eof()")
        if data and not self._closing:
            self._unsent.append(bytes(data))
            self._unsent_size += len(self._unsent[-1])
            self._fill_window()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several buffers, as one :meth:`write` would."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """True: a half can be closed."""
        return True

    def write_eof(self) -> None:
        """Close this direction after what was written."""
        self._eof = True
        self._schedule()

    def close(self) -> None:
        """Close after what was written has been taken into the peer's window."""
        if not self._closing:
            self._closing = self._eof = True
            self._schedule()
            if not self._unsent:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """Close at once; the peer's connection is reset, and what is in flight is lost."""
        peer = self._peer
        self._lose(None)
        if peer is not None:
            peer._lose(ConnectionResetError("the peer aborted the connection"))

    # -- inside ----------------------------------------------------------------------------------

    def connect(self, peer: MemoryTransport, protocol: asyncio.BaseProtocol) -> None:
        """Called by :func:`memory_pair`, once."""
        self._peer, self._protocol = peer, protocol

    def _fill_window(self) -> None:
        room = self._window - len(self._in_flight)
        while room > 0 and self._unsent:
            data = self._unsent.popleft()
            if len(data) > room:
                self._unsent.appendleft(data[room:])
                data = data[:room]
            self._in_flight += data
            self._unsent_size -= len(data)
            room -= len(data)
        self._schedule()
        self._pause_or_resume_protocol()
        if self._closing and not self._unsent:
            self._loop.call_soon(self._lose, None)

    def _pause_or_resume_protocol(self) -> None:
        protocol = self._protocol
        if protocol is None or self._closing:
            return
        if self._unsent_size > self._high and not self._protocol_paused:
            self._protocol_paused = True
            protocol.pause_writing()
        elif self._unsent_size <= self._low and self._protocol_paused:
            self._protocol_paused = False
            protocol.resume_writing()

    def _schedule(self) -> None:
        if self.automatic and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver_automatically)

    def _deliver_automatically(self) -> None:
        self._scheduled = False
        if self.deliver() and self._in_flight:
            self._schedule()
        elif self._eof and not self._eof_delivered and not self._in_flight:
            self.deliver()

    def _receive_eof(self) -> None:
        protocol = self._protocol
        keep_open = False
        if isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol):
            keep_open = bool(protocol.eof_received())
        if not keep_open:
            self.close()

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._closing = self._lost = True
        self._unsent.clear()
        self._unsent_size = 0
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            self._loop.call_soon(protocol.connection_lost, error)


def _receive(protocol: asyncio.BaseProtocol | None, data: bytes) -> None:
    if isinstance(protocol, asyncio.Protocol):
        protocol.data_received(data)
    elif isinstance(protocol, asyncio.BufferedProtocol):
        view = memoryview(data)
        while view:
            buffer = memoryview(protocol.get_buffer(len(view))).cast("B")
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
            protocol.buffer_updated(size)
            view = view[size:]


def memory_pair(
    first: asyncio.BaseProtocol,
    second: asyncio.BaseProtocol,
    *,
    window: int = _DEFAULT_WINDOW,
    automatic: bool = True,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Connect two protocols through memory, in the running loop.

    Args:
        first: a protocol; ``connection_made()`` is called before this returns.
        second: the other end, likewise.
        window: bytes that are in flight in each direction at most, as TCP's receive window has it;
            what is written beyond waits in the transport that it was written to.
        automatic: deliver whenever possible.  Otherwise a test delivers what it likes, in pieces
            of any size, with :meth:`MemoryTransport.deliver`.

    Returns:
        Both transports, in the order of the protocols.
    """
    loop = asyncio.get_running_loop()
    names = ("memory", 1), ("memory", 2)
    ends = (
        MemoryTransport(loop, window, {"sockname": names[0], "peername": names[1]}),
        MemoryTransport(loop, window, {"sockname": names[1], "peername": names[0]}),
    )
    for end, peer, protocol in zip(ends, reversed(ends), (first, second), strict=True):
        end.connect(peer, protocol)
        end.automatic = automatic
    first.connection_made(ends[0])
    second.connection_made(ends[1])
    return ends
