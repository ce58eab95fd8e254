"""A connection as applications use it, the same for each backend, and payload that is kept."""

from __future__ import annotations

import abc
import collections
import contextlib
import errno
import fcntl
import socket
import sys
from typing import TYPE_CHECKING, Any, Protocol, Self

from ._reset import reset_on_close
from .errors import BrokenError, ClosedError, broken, make_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Buffer = bytes | bytearray | memoryview
#: An address as the ``socket`` module has it: host, port, and more with IPv6.
Address = tuple[Any, ...]

_WRITE_AFTER_END = "write after the program's own shutdown_write() or close()"

#: ioctl for the number of bytes that are not acknowledged.
SIOCOUTQ = 0x5411


class Payload(Protocol):
    """The argument of :meth:`Connection.forward`: a :class:`Segment`, or a :class:`Kept`."""

    @property
    def view(self) -> memoryview: ...


class Connection(abc.ABC):
    """One attached TCP connection.

    Attributes:
        sock: the connection's socket.  Use it for control (``getpeername``, ``setsockopt``),
            never for payload.
        id: the backend's number for the connection, unique among live ones; 0 while an accepted
            one waits for the exchange that names it (on rings).
        app: free for the application, for instance its protocol state.
        pending: how many written bytes the backend could not take yet; they are queued in memory.
            Not to be set.
        bytes_acked: how many written bytes the peer's TCP has acknowledged, as of the last
            ``Event.ACKED``.
    """

    #: Payloads of up to so many bytes are copied: a slice of a copy keeps no page from the ring.
    _COPY_MAX = 2048

    __slots__ = (
        "__weakref__",
        "_above_high",
        "_bytes_written",
        "_closing",
        "_copy_max",
        "_credits",
        "_discarding",
        "_dropped",
        "_exceeded",
        "_failure",
        "_high",
        "_low",
        "_paused",
        "_peername",
        "_released",
        "_report_due",
        "_report_end",
        "_shutdown",
        "_sockname",
        "_waiting",
        "app",
        "bytes_acked",
        "id",
        "pending",
        "sock",
    )

    def __init__(self, sock: socket.socket, id: int, peername: Address | None = None) -> None:
        self.sock = sock
        self.id = id
        self.app: Any = None
        self._bytes_written = self.bytes_acked = 0
        self._peername = peername
        self._sockname: Address | None = None
        self._waiting: collections.deque[bytes | memoryview] = collections.deque()
        self.pending = 0
        self._high = self._low = 0
        self._above_high = False
        # Called when the queue rises above the high limit by what the kernel gave back.
        self._exceeded: Callable[[], object] | None = None
        self._discarding = False
        self._dropped = False
        # The errno with which sending failed.
        self._failure = 0
        self._paused = False
        # Payloads of up to so many bytes are copied, though a page could be lent.
        self._copy_max = self._COPY_MAX
        # Segments of data that it may still deliver; None: any number.
        self._credits: int | None = None
        # The last written byte of which a report was asked for, and whether the backend is to be
        # asked once the queue is empty.
        self._report_end = 0
        self._report_due = False
        self._shutdown = False
        self._closing = False
        # Its socket is closed, or no longer the port's.
        self._released = False

    def __repr__(self) -> str:
        words = [f"{type(self).__name__} {self.id}"]
        if self._peername:
            words.append(f"to {self._peername[0]} port {self._peername[1]}")
        if self._released or self._closing:
            words.append("closed" if self._released else "closing")
        if self._paused:
            words.append("paused")
        if self.pending:
            words.append(f"{self.pending} bytes pending")
        return f"<{', '.join(words)}>"

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
    def _reset(self) -> None:
        """Close the socket, which resets the connection, as soon as that is possible."""

    @abc.abstractmethod
    def _apply_pause(self) -> None:
        """Take data from TCP, or take none any more, as ``_paused`` says."""

    @abc.abstractmethod
    def _apply_credits(self, more: int | None) -> None:
        """Deliver so many more segments of data; None: any number."""

    @abc.abstractmethod
    def _prepare_report(self) -> None:
        """A report will be requested for the bytes that are handed over next."""

    @abc.abstractmethod
    def _request_report(self) -> None:
        """Have ``Event.ACKED`` told for the last byte that was handed over, which was just now."""

    @abc.abstractmethod
    def _report_written(self) -> bool:
        """Have ``Event.ACKED`` told for what was handed over already; False if it is too late."""

    @abc.abstractmethod
    def _unsent_by_backend(self) -> int:
        """Bytes that were handed over, and that TCP has not sent yet."""

    @property
    @abc.abstractmethod
    def unsynced(self) -> int:
        """Bytes in transmit slots that TCP has not been given yet.

        An exchange, or a flush, leaves none but for want of spare buffers.  0 on sockets.
        """

    # -- called by an application --------------------------------------------------------------

    @property
    def bytes_written(self) -> int:
        """How many bytes :meth:`write` and :meth:`forward` have been given since the beginning."""
        return self._bytes_written

    @property
    def unsent(self) -> int:
        """Bytes written that TCP has not sent yet: :attr:`pending`, slots, and TCP's own queue.

        What is sent and not acknowledged is not among them.  0 once the connection is closed.
        """
        return 0 if self._released else self.pending + self._unsent_by_backend()

    @property
    def unacknowledged(self) -> int:
        """Bytes written that the peer's TCP has not acknowledged; an unacknowledged FIN counts 1.

        0 once the connection is closed.  On both backends this is a system call.
        """
        if self._released:
            return 0
        return self.pending + self.unsynced + self._queue_size(SIOCOUTQ)

    @property
    def send_error(self) -> BrokenError | None:
        """Why what is written now is lost, as soon as that is known: ``ERROR`` may come later."""
        return broken(self._failure) if self._failure else None

    @property
    def dropped(self) -> bool:
        """Written bytes were dropped that TCP never had: it failed, or the program ended it."""
        return self._dropped

    @property
    def reading(self) -> bool:
        """Received data is delivered: the connection is neither paused nor closing."""
        return not (self._paused or self.is_closing())

    def is_closing(self) -> bool:
        """It is closed or closing, by the program or because it failed, or it is detached."""
        return self._closing or self._released

    @property
    def peername(self) -> Address | None:
        """The peer's address, as ``getpeername()`` gave it at first; None if it was gone by then.

        It stays when the connection has ended.
        """
        return self._peername

    @property
    def sockname(self) -> Address | None:
        """The own address, as of ``getsockname()``.  It stays when the connection has ended."""
        if self._sockname is None:
            with contextlib.suppress(OSError):
                self._sockname = self.sock.getsockname()
        return self._sockname

    def set_write_limits(
        self,
        high: int,
        low: int | None = None,
        exceeded: Callable[[], object] | None = None,
    ) -> None:
        """Say when ``Event.WRITABLE`` is wanted.

        It comes when :attr:`pending` sinks to ``low`` or below after it was above ``high``.  If it
        was owed before this call, it still comes.  When it is seen, :attr:`pending` may have grown
        again; see :meth:`owe_writable`.  Both limits are 0 at first.

        Args:
            high: bytes.
            low: bytes; by default a quarter of ``high``.
            exceeded: called when :attr:`pending` rises above ``high`` without a write: rings take
                what is written, and TCP may give it back later.  It runs in the middle of
                an exchange, a flush or another connection's write, where it may only make a note.

        Raises:
            ValueError: not 0 <= low <= high.
        """
        low = high // 4 if low is None else low
        if not 0 <= low <= high:
            raise ValueError(f"write limits must be 0 <= low <= high, not {low} and {high}")
        self._high, self._low = high, low
        self._exceeded = exceeded
        owed = self._above_high and self.pending > 0  # as the limits were before
        self._above_high = owed or self.pending > high

    def owe_writable(self) -> None:
        """Have ``Event.WRITABLE`` come when :attr:`pending` sinks to ``low`` or below next.

        An exchange decides on the event, and :attr:`pending` may have grown between ``low`` and
        ``high`` until it is seen: by writes of other connections' handlers, or by what TCP gave
        back.  A program that goes on only at ``low`` has to ask again then, or it is never told.
        """
        self._above_high = self.pending > self._low

    def write(self, data: Buffer, report: bool = False) -> None:
        """Send ``data``.

        Never blocks and never drops: what cannot be taken now is queued (see :attr:`pending`)
        and sent by later exchanges; ``Event.WRITABLE`` says when the queue is empty again, or as
        :meth:`set_write_limits` asks.  The data is copied before this returns, so the caller may
        reuse its buffer.  What is written to a connection that has failed is lost, which its
        events say.

        Args:
            data: any buffer of bytes.
            report: ask for ``Event.ACKED`` when the peer's TCP has acknowledged the last byte of
                ``data``: :attr:`bytes_acked` is then at least what :attr:`bytes_written` is after
                this call.  One event may stand for several writes.  The peer's TCP has the bytes
                then; its application may not have read them.

        Raises:
            ValueError: a report is asked for, and ``data`` is empty.
            ClosedError: ``EPIPE``, after :meth:`shutdown_write` or :meth:`close`.
        """
        if self._shutdown:
            raise make_error(ClosedError, errno.EPIPE, _WRITE_AFTER_END)
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B")  # its items may be larger than bytes
        if report:
            if not data:
                raise ValueError("no byte of an empty write can be acknowledged")
            self._prepare_report()
        self._bytes_written += len(data)
        taken = 0 if self._waiting else self._send(data)
        if taken < len(data):
            self._queue(bytes(data[taken:]))
        if report:
            self._ask_for_report()

    def writelines(self, parts: Iterable[Buffer]) -> None:
        """Send several buffers in order, as one :meth:`write` would."""
        for part in parts:
            self.write(part)

    def forward(self, segment: Payload) -> None:
        """Send on the payload that a segment shows, as :meth:`write` does, and release its view.

        Rings hand on the page that holds it instead of copying it, where they can.  The segment
        must be of the last exchange, or kept; it may be of any connection and any port.

        Raises:
            ClosedError: ``EPIPE``, after :meth:`shutdown_write` or :meth:`close`.
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
            self._begin_closing()
            if not self._waiting:
                self._release()

    def abort(self) -> None:
        """Close at once with RST; queued and unacknowledged data is dropped.  Idempotent."""
        if not self._released:
            self._begin_closing()
            self._drop_queue()
            reset_on_close(self.sock)
            self._reset()

    def discard(self) -> None:
        """Drop what is queued, and whatever TCP does not take of what was handed over before.

        Nothing can be written any more.  What TCP has is still sent, in contrast to :meth:`abort`;
        :meth:`close` then waits for nothing.  Idempotent.
        """
        if not self._released:
            self._discarding = self._shutdown = True
            # The mark of a connection that is not attached yet stays: its end waits for that.
            unnamed = bool(self._waiting) and not len(self._waiting[0])
            self._drop_queue()
            if unnamed:
                self._waiting.append(memoryview(b""))

    def pause_reading(self) -> None:
        """Take no more data from TCP, so that its window closes.  Idempotent.

        Until :meth:`resume_reading`, nothing that the peer sends is delivered, not even its
        ``EOF``.  If the connection fails meanwhile, ``ERROR`` and ``CLOSED`` come at once, and what
        was not delivered is dropped.
        """
        if not (self._paused or self._released):
            self._paused = True
            self._apply_pause()

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`.  Idempotent."""
        if self._paused:
            self._paused = False
            if not self._released:
                self._apply_pause()

    def grant(self, segments: int | None) -> None:
        """Let the connection deliver so many more segments of data, and then no more.

        When they are used up it is as if :meth:`pause_reading` had been called, until more are
        granted: the peer is held back by TCP's window.  The end of the stream (``EOF``) and other
        events need no grant.  At first a connection may deliver any number; counting begins, from
        zero, with the first call.

        Args:
            segments: how many more, 0 or more; None for any number again.

        Raises:
            ValueError: ``segments`` is negative.
        """
        if segments is not None and segments < 0:
            raise ValueError(f"segments to grant must be 0 or more, not {segments}")
        self._credits = None if segments is None else (self._credits or 0) + segments
        if not self._released:
            self._apply_credits(segments)

    # -- reports of acknowledgements -----------------------------------------------------------

    def report_written(self) -> bool:
        """Ask for ``Event.ACKED`` for what has been written so far, as ``write(report=True)`` does.

        Returns:
            False if it is too late: TCP has all of it already (on sockets always, but for what is
            queued), or there is nothing to report.  :attr:`unacknowledged` tells then.
        """
        if self._released or self.bytes_acked >= self.bytes_written:
            return False
        if self.pending:
            self._prepare_report()
            self._ask_for_report()
            return True
        if self._report_written():
            self._report_end = self.bytes_written
            return True
        return False

    def _ask_for_report(self) -> None:
        self._report_end = self.bytes_written
        if self._waiting:
            self._report_due = True
        else:
            self._request_report()

    def _acknowledged(self, count: int) -> None:
        """The peer has acknowledged so many of the bytes written."""
        self.bytes_acked = max(self.bytes_acked, count)

    # -- the queue of unsent bytes -------------------------------------------------------------

    def _begin_closing(self) -> None:
        self._closing = self._shutdown = True

    def _queue(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        self._add_pending(len(data))

    def _requeue(self, data: bytes) -> None:
        """Put bytes that the backend took, but gave back, at the front again."""
        if self._discarding:
            return
        if self._report_end > self.bytes_acked:
            self._report_due = True  # what was given back may have been to be reported
        was_above = self._above_high
        self._waiting.appendleft(memoryview(data))
        self._add_pending(len(data))
        if self._exceeded and self._above_high and not was_above:
            self._exceeded()

    def _add_pending(self, size: int) -> None:
        self.pending += size
        if self.pending > self._high:
            self._above_high = True

    def _sank_to_low(self) -> bool:
        """Whether ``WRITABLE`` is to be told now; if so, it is not again before the next time."""
        if self._above_high and self.pending <= self._low and not self._closing:
            self._above_high = False
            return True
        return False

    def _queue_size(self, which: int) -> int:
        """Bytes in one of the socket's queues, by its ioctl; 0 if it has none any more."""
        try:
            found = fcntl.ioctl(self.sock, which, bytes(4))
        except (OSError, ValueError):
            return 0
        return int.from_bytes(found, sys.byteorder)

    def _drop_queue(self) -> None:
        if self.pending:
            self._dropped = True
        self._waiting = collections.deque()  # another, so that _flush() notices
        self.pending = 0
        self._above_high = False

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
            self.pending -= taken
            if taken < len(data):
                # Bytes that the backend gave back meanwhile were sent before these, and go first.
                waiting.insert(len(waiting) - behind, data[taken:])
                return False
        if self._report_due and self._waiting is waiting:
            self._report_due = False
            self._request_report()
        if self._closing:
            self._release()
        elif self._shutdown:
            self._send_fin()
        return self._waiting is waiting


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

    def __repr__(self) -> str:
        try:
            size = f"{len(self.view)} bytes"
        except ValueError:
            size = "released"
        return f"<{type(self).__name__} of {self.connection!r}, {size}>"

    def release(self) -> None:
        """Give up the payload.  Idempotent."""
        self.view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
