"""The interface that applications use, the same for each backend.

A :class:`Port` owns the data path of many connections.  Connections are made with ordinary
sockets (``socket``, ``accept``, ``connect``) and handed over with :meth:`Port.attach`; from then
on their payload moves only through :meth:`Connection.write` and :meth:`Port.exchange`.

Two backends implement these classes: rings shared with ``stackmap.ko``
(:class:`stackmap.RingPort`), and non-blocking sockets (:class:`stackmap.SocketPort`).
An application written against this module runs on both, which is what makes the second one an
honest baseline for the first.
"""

from __future__ import annotations

import abc
import collections
import enum
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from ._fast import Segment

Buffer = bytes | bytearray | memoryview


class HasFileno(Protocol):
    """Anything :mod:`select` can wait for."""

    def fileno(self) -> int: ...


class Event(enum.IntFlag):
    """The meaning of a segment without payload.

    Events arrive in order with the data: every byte the peer sent before its FIN is delivered
    before ``EOF``, and nothing follows ``CLOSED``.
    """

    NONE = 0
    #: The peer sent FIN: nothing more will be received (sending may go on).
    EOF = 1
    #: The connection failed; :attr:`Segment.errno` says how (``ECONNRESET``, ``ETIMEDOUT``...).
    ERROR = 2
    #: Everything that :meth:`Connection.write` had to queue has been handed to TCP.
    WRITABLE = 4
    #: The connection is gone, and its socket is closed; nothing more comes from it.  Follows
    #: ``ERROR``, :meth:`Connection.close` and :meth:`Connection.abort`, and comes by itself once
    #: both directions have ended (``EOF`` and :meth:`Connection.shutdown_write`).
    CLOSED = 8
    #: The connection is new, and another thread put it on this ring (only with several rings, see
    #: :meth:`stackmap.RingPort.place`).
    OPEN = 32


def warn_in_use(connections: Iterable[Connection]) -> None:
    """Say that payload of an earlier exchange is still referred to, which is a leak if it lasts."""
    owners = " or ".join(sorted({repr(connection) for connection in connections}))
    warnings.warn(
        f"a view received from {owners} is still in use after the next exchange; its memory is "
        "kept until its slices are released (copy what you keep, or use Port.keep())",
        ResourceWarning,
        stacklevel=4,  # whoever called exchange()
    )


class Kept:
    """Received payload that outlives exchanges, until it is released or forwarded.

    Attributes:
        connection: the connection that it belongs to.
        view: a read-only view of it; using it after :meth:`release` raises ``ValueError``.
    """

    __slots__ = ("connection", "view")

    def __init__(self, connection: Connection, view: memoryview) -> None:
        self.connection = connection
        self.view = view

    def release(self) -> None:
        """Give up the payload.  Idempotent."""
        self.view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class PortStats:
    """Counters of one port since it was opened.  Bytes are payload bytes.

    ``ring_*`` and ``slots_*`` are counted by the kernel module and are zero on sockets;
    ``socket_*`` are counted by :class:`stackmap.SocketPort` and are zero on rings.
    """

    ring_bytes_rx: int = 0
    ring_bytes_tx: int = 0
    socket_bytes_rx: int = 0
    socket_bytes_tx: int = 0
    #: Transmit slots whose payload TCP accepted.
    slots_sent: int = 0
    #: Transmit buffers released because the peer acknowledged their last byte.
    slots_released_by_ack: int = 0
    #: Transmit buffers released because the connection was reset or aborted.
    slots_released_by_reset: int = 0
    #: Transmit buffers that wait for an acknowledgement now.
    slots_pinned: int = 0
    #: Transmit slots refused for their content (bad length, offset, reserved bits, index or owner),
    #: and receive slots given back with a bad index or owner.
    bad_slots: int = 0
    #: Slots that named a connection which is not attached here.
    unknown_connections: int = 0
    #: Slots given back because their connection could take no more ("try again").
    slots_refused_again: int = 0
    #: Times a ring's head or cur was out of range and the ring was reset.
    bad_rings: int = 0


class Connection(abc.ABC):
    """One attached TCP connection.

    Attributes:
        sock: the connection's socket.  Use it for control (``getpeername``, ``setsockopt``),
            never for payload.
        id: the backend's number for the connection, unique among live ones; 0 while an accepted
            one waits for the exchange that names it (on rings).
        app: free for the application, for instance its protocol state.
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_shutdown",
        "_waiting",
        "_waiting_bytes",
        "app",
        "id",
        "sock",
    )

    def __init__(self, sock: socket.socket, id: int) -> None:
        self.sock = sock
        self.id = id
        self.app: Any = None
        self._waiting: collections.deque[bytes | memoryview] = collections.deque()
        self._waiting_bytes = 0
        self._shutdown = False
        self._closing = False

    # -- provided by a backend -------------------------------------------------------------------

    @abc.abstractmethod
    def _send(self, data: Buffer) -> int:
        """Hand over as much of ``data`` as can be taken now; return the number of bytes."""

    @abc.abstractmethod
    def _send_fin(self) -> None:
        """Send FIN after everything handed over so far."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Close the socket after everything handed over so far."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Close at once with RST; queued and unacknowledged data is dropped."""

    @abc.abstractmethod
    def pause_reading(self) -> None:
        """Take no more data from TCP, so that its window closes.  Idempotent.

        Until :meth:`resume_reading`, nothing that the peer sends is delivered, not even its
        ``EOF``, but for data that is in the receive ring already.  If the connection fails
        meanwhile, ``ERROR`` and ``CLOSED`` come at once, and what TCP still had is dropped.
        """

    @abc.abstractmethod
    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`.  Idempotent."""

    # -- called by an application --------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes written that the backend could not take yet (they are queued in memory)."""
        return self._waiting_bytes

    def write(self, data: Buffer) -> None:
        """Send ``data``.

        Never blocks and never drops: what cannot be taken now is queued (see :attr:`pending`)
        and sent by later exchanges; ``Event.WRITABLE`` says when the queue is empty again.  The
        data is copied before this returns, so the caller may reuse its buffer.  What is written to
        a connection that has failed is lost, which its events say.

        Raises:
            BrokenPipeError: after :meth:`shutdown_write` or :meth:`close`.
        """
        if self._shutdown:
            raise BrokenPipeError("write after the program's own shutdown_write() or close()")
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B")  # its items may be larger than bytes
        taken = 0 if self._waiting else self._send(data)
        if taken < len(data):
            self._queue(bytes(data[taken:]))

    def writelines(self, parts: Iterable[Buffer]) -> None:
        """Send several buffers in order, as one :meth:`write` would."""
        for part in parts:
            self.write(part)

    def forward(self, segment: Segment | Kept) -> None:
        """Send on the payload that a segment shows, as :meth:`write` does, and release its view.

        Rings hand on the page that holds it instead of copying it, where they can.  The segment
        must be of the last exchange, or kept; it may be of any connection and any port.

        Raises:
            BrokenPipeError: after :meth:`shutdown_write` or :meth:`close`.
            ValueError: the view was released, by an earlier call or by an exchange.
        """
        self.write(segment.view)
        if isinstance(segment, Kept):
            segment.release()
        else:
            segment.view.release()

    def shutdown_write(self) -> None:
        """Send FIN after everything written so far (half-close).  Idempotent."""
        if not self._shutdown:
            self._shutdown = True
            if not self._waiting:
                self._send_fin()

    def close(self) -> None:
        """Close after everything written so far has been handed to TCP.  Idempotent.

        ``Event.CLOSED`` follows.
        """
        if not self._closing:
            self._closing = self._shutdown = True
            if not self._waiting:
                self._release()

    # -- the queue of unsent bytes -------------------------------------------------------------

    def _queue(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data)

    def _requeue(self, data: bytes) -> None:
        """Put bytes that the backend took, but gave back, at the front again."""
        self._waiting.appendleft(memoryview(data))
        self._waiting_bytes += len(data)

    def _drop_queue(self) -> None:
        self._waiting = collections.deque()  # another, so that _flush() notices
        self._waiting_bytes = 0

    def _flush(self) -> bool:
        """Send from the queue; True when all of it is sent.

        Actions that waited for an empty queue are done too.
        """
        waiting = self._waiting
        while waiting:
            data = waiting.popleft()
            behind = len(waiting)
            taken = self._send(data)
            if self._waiting is not waiting:
                break  # it failed, and the queue was dropped
            self._waiting_bytes -= taken
            if taken < len(data):
                # Bytes that the backend gave back meanwhile were sent before these, and go first.
                waiting.insert(len(waiting) - behind, data[taken:])
                return False
        if self._closing:
            self._release()
        elif self._shutdown:
            self._send_fin()
        return self._waiting is waiting


class Listener(abc.ABC):
    """A listening socket whose connections come attached.

    It can be watched: it is readable when :meth:`accept` would not wait.

    Attributes:
        sock: the socket, which the listener owns.
    """

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @abc.abstractmethod
    def accept(self) -> Connection:
        """Accept one connection, attached to the port.  Waits if the socket does.

        A connection that the peer has reset meanwhile is returned like any other; its events say
        what became of it.

        Raises:
            OSError: as of ``socket.accept``, or the connection could not be attached.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop listening.  Connections that were accepted live on.  Idempotent."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.sock.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Port(abc.ABC):
    """The data path of many connections.  One thread uses a port at a time."""

    #: ``"stackmap"`` or ``"sockets"``.
    backend: ClassVar[str]

    @abc.abstractmethod
    def attach(self, sock: socket.socket) -> Connection:
        """Take over the payload of an established TCP connection.

        The connection owns ``sock`` from here on.  Bytes that arrived before are delivered first.
        A connection that failed before anybody was told, for instance because the peer reset it
        before ``accept()`` returned it, is taken too: ``ERROR`` and ``CLOSED`` follow.

        Raises:
            OSError: the socket cannot be attached (not TCP, listening, not connected, in use).
            ValueError: the port is closed.
        """

    @abc.abstractmethod
    def attach_listener(self, sock: socket.socket) -> Listener:
        """Attach the connections that a listening TCP socket accepts; see :class:`Listener`.

        The listener owns ``sock`` from here on, and :meth:`close` closes it.

        Raises:
            OSError: the socket is not listening, not TCP, or in use.
            ValueError: the port is closed.
        """

    @abc.abstractmethod
    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        """Send everything written, and return everything received, in one go.

        Views of the previous exchange are released first.  One that is still in use elsewhere (a
        slice of it, for instance) goes on to show the same bytes, and its memory is kept; a
        ``ResourceWarning`` says so.

        Waits up to ``timeout`` seconds (for ever when None) if there is nothing to return; watched
        files end the wait early, after their callbacks ran.  A signal does not (PEP 475).  If a
        callback raises, or the handler of a signal that came meanwhile, so does this, and the next
        exchange returns what this one received.  Nothing that happens to a connection is raised:
        its events say it.
        """

    def keep(self, segment: Segment) -> Kept:
        """Have the payload of a segment stay valid beyond the next exchange.

        The segment's own view is released.  Rings keep the page that holds the payload, from 513
        bytes on, if it is of this ring and an extra buffer of the port is left.  All else is
        copied.

        Raises:
            ValueError: the segment's view was released, by an earlier call or by an exchange.
        """
        kept = Kept(segment.connection, memoryview(bytes(segment.view)))
        segment.view.release()
        return kept

    @abc.abstractmethod
    def watch(self, file: HasFileno | int, callback: Callable[[], object]) -> None:
        """Call ``callback`` from :meth:`exchange` whenever ``file`` is readable.

        Args:
            file: a listener, a timer, a pipe...: whatever has a ``fileno()``, or its descriptor.
                It stays the caller's, who stops watching it before closing it.
            callback: what to call.  It may attach, write, watch and unwatch; what it returns is
                ignored.

        Raises:
            FileExistsError: the file is watched already, or attached.
            PermissionError: it is a regular file or a folder, which epoll cannot wait for.
            ValueError: the file is closed, or the port is.
        """

    @abc.abstractmethod
    def unwatch(self, file: HasFileno | int) -> None:
        """Stop watching ``file``.

        Raises:
            ValueError: it is not watched, or is closed, or the port is closed.
        """

    @abc.abstractmethod
    def stats(self) -> PortStats:
        """Counters since the port was opened."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the port and the sockets of its connections.  Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
