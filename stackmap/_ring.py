"""A transmit and a receive ring, and the connections that one thread has on them.

One exchange is one system call: it sends the batch that was written, polls the NIC, and returns
what arrived for all connections.  Slots are walked in C, a batch per call (``_ring.c``); batches
with nothing but payload also become segments there (``_fast_exchange.c``).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import select
import selectors
import socket
import sys
from typing import TYPE_CHECKING, ClassVar

from ._connect import start_connecting
from ._event import Event
from ._fast import LentSegment, Segment, usual_exchange
from ._in_use import warn_in_use
from ._kept import LentKept
from ._kernel_port import check
from ._pair import SMALL, Pair
from ._port import PortStats
from ._ring_c import lib
from ._ring_connection import Carrier, RingConnection
from ._ring_listener import RingListener
from ._transmission import Transmission
from ._unclaimed import Unclaimed
from ._watch import Watches
from .errors import BrokenError, ClosedError, WouldBlockError, make_error, port_closed

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from ._connection import Address, Connection, Kept
    from ._kernel_port import KernelPort
    from ._watch import HasFileno

#: Seconds between two tries while the kernel is short of buffers.
_SHORTAGE = 0.01
_NO_EVENT = Event.NONE
_EVENTS = [Event(flags) for flags in range(128)]
_OPEN = Event.OPEN.value
_ACKED = Event.ACKED.value


def _peername(sock: socket.socket) -> Address | None:
    try:
        address: Address = sock.getpeername()
    except OSError:
        return None  # reset meanwhile: its events say so
    return address


class Ring(Carrier):
    """A transmit and a receive ring of a :class:`RingPort`, for one thread.

    It is a port of its own to that thread: it has connections, watched files and exchanges of its
    own.  :meth:`stats` are those of the whole port.
    """

    #: State that the usual exchange reads (_fast_exchange.c).
    __slots__ = ("_after_send", "_attention", "_connections", "_fast", "_starved")

    backend: ClassVar[str] = "stackmap"

    def __init__(
        self,
        kernel: KernelPort,
        index: int,
        *,
        listeners: dict[int, RingListener],
        placing: threading.Lock,
        spin: float,
    ) -> None:
        #: The number of this pair of rings in the port.
        self.index = index
        self._kernel = kernel
        self._listeners = listeners  # of the whole port, by the kernel's number
        self._placing = placing  # taken by threads that place connections on rings of the port
        self._epoll = select.epoll()
        self._watches = Watches(self._epoll)
        self._connections: dict[int, RingConnection] = {}
        self._pair = Pair(kernel, index, self._epoll.fileno(), spin)
        self._fast = self._pair.fast
        self._transmission = Transmission(self._pair, self._connections)
        self._after_send = self._transmission.after_send
        self._starved = self._transmission.starved
        self._held: list[Segment] = []  # of an exchange that a callback's exception ended
        self._events: list[Segment] = []  # that the kernel does not tell
        # Connections that take data again, and have something held back.
        self._resumed: dict[RingConnection, None] = {}
        self._connecting: set[RingConnection] = set()
        # Connections that other threads put here, and those that accept() has not returned yet.
        self._placed: collections.deque[RingConnection] = collections.deque()
        self._unclaimed: dict[int, Unclaimed] = {}
        # The next exchange has segments to deliver, or connections of other threads to look for.
        self._attention = False
        self._polled = False  # by another loop, which waits for fileno()
        self._closed = False
        try:
            self._epoll.register(self._pair.struct.fd, select.EPOLLIN)
        except OSError:
            self._pair.close()
            raise

    def __repr__(self) -> str:
        return f"<Ring {self.index}, {'closed' if self._closed else len(self._connections)}>"

    def fileno(self) -> int:
        """A descriptor for other loops to wait for; see :meth:`Port.fileno`."""
        if self._closed:
            raise port_closed()
        self._polled = True
        return self._epoll.fileno()

    # -- the contract --

    @property
    def connections(self) -> list[Connection]:
        """The connections of this ring that are not closed; see :meth:`Port.connections`."""
        return [*self._connections.values(), *self._connecting]

    @property
    def closed(self) -> bool:
        """The ring is closed."""
        return self._closed

    def attach(self, sock: socket.socket) -> RingConnection:
        """Take over the payload of an established TCP connection.

        TCP_NODELAY is set: a batch is already what Nagle's algorithm would wait for.

        Raises:
            BusyError: ``EALREADY`` (attached here or elsewhere), ``EBUSY`` (taken by kTLS, sockmap,
                KCM or SMC, or in TCP_REPAIR mode, or a call waits to send on it).
            ClosedError: the port is closed, or the socket.
            OSError: ``EOPNOTSUPP`` (not TCP), ``EINVAL`` (listening), ``ENOTCONN``, ``EXDEV`` (of
                another network namespace), ``ENOSPC`` (the port has all the connections that it
                may have).
        """
        attached = self._kernel.attach(sock, self.index)
        connection = RingConnection(
            self, sock, attached.id, attached.record, peername=_peername(sock)
        )
        connection.sockname  # noqa: B018 (it is kept)
        self._connections[connection.id] = connection
        return connection

    def connect(self, address: tuple[str, int]) -> RingConnection:
        """Begin to connect, and attach the connection afterwards; see :meth:`Port.connect`."""
        if self._closed:
            raise port_closed()
        sock, peername, code = start_connecting(address)
        connection = RingConnection(self, sock, peername=peername)
        self._connecting.add(connection)
        if code:
            self._finish_connecting(connection, code)
        else:
            finish = functools.partial(self._finish_connecting, connection)
            self._watches.add(sock, finish, selectors.EVENT_WRITE)
        return connection

    def attach_listener(self, sock: socket.socket) -> RingListener:
        """Attach the connections of a listening socket to this ring from the first byte.

        No system call is made for a connection but accept() itself.

        Raises:
            OSError: ``EINVAL`` (not listening), or as :meth:`attach`.
        """
        attached = self._kernel.attach(sock, self.index, listener=True)
        return RingListener(sock, attached.id, self._listeners, self._unnamed_connection)

    def detach(self, connection: Connection) -> None:
        """Make the connection's socket an ordinary one again; see :meth:`Port.detach`."""
        if not isinstance(connection, RingConnection) or connection.ring is not self:
            raise ValueError(f"{connection!r} is of another port or another ring")
        self.flush()
        if connection._released:
            raise make_error(
                BrokenError if connection._failed else ClosedError,
                errno.ENOENT,
                "the connection is gone",
            )
        if connection._waiting or not self._pair.all_synced:
            raise make_error(WouldBlockError, errno.EAGAIN, "the connection has unsent data")
        try:
            self._kernel.detach(connection.id)
        except FileNotFoundError as failure:
            raise make_error(BrokenError, errno.ENOENT, "the connection is gone") from failure
        connection._released = connection._shutdown = True
        connection._paused = False
        if connection._held_back:
            self._deliver_later(connection)
        else:
            connection._deaf = connection._closing

    @usual_exchange
    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        """Send everything written, and return everything received; see :meth:`Port.exchange`."""
        if self._attention or self._after_send or self._starved:
            if self._held:
                return self._deliver_held()
            timeout = self._finish_before_wait(timeout)
        self._take_back()
        try:
            found = self._fast.exchange(timeout, self._connections)
        except BaseException:  # of a signal's handler
            self._interrupted()
            raise
        return self._complete(found, timeout)

    def flush(self) -> None:
        """Send everything written, and leave all views as they are; see :meth:`Port.flush`."""
        self._transmission.send_batch()
        self._transmission.finish_sent()

    def flush_from_outside(self) -> None:
        """Send everything written, from another thread; see :meth:`Port.flush_from_outside`."""
        self._fast.send()

    def wakeup(self) -> None:
        """End the wait of :meth:`exchange`; see :meth:`Port.wakeup`."""
        self._watches.wake()

    def keep(self, segment: Segment, *, copy: bool = True) -> Kept:
        """Have the payload of a segment stay valid beyond the next exchange; see :meth:`Port.keep`.

        Raises:
            BufferError: a slice of the segment's view is still in use, or ``copy`` is False and it
                would have to be copied.
        """
        extra = self._kernel.extra_buffers
        if isinstance(segment, LentSegment) and segment.lender is self._fast and extra:
            spare = extra.pop()
            try:
                return LentKept(self._kernel, segment, spare)
            except BufferError:
                extra.append(spare)
                raise
        return super().keep(segment, copy=copy)

    def watch(
        self,
        file: HasFileno | int,
        callback: Callable[[], object],
        events: int = selectors.EVENT_READ,
    ) -> None:
        """Call ``callback`` whenever ``file`` is ready; see :meth:`Port.watch`."""
        self._watches.add(file, callback, events)

    def unwatch(self, file: HasFileno | int) -> None:
        """Stop watching ``file``; see :meth:`Port.unwatch`."""
        self._watches.remove(file)

    def stats(self) -> PortStats:
        """The kernel's counters since the port was opened, of all its rings."""
        return self._kernel.stats()

    def close(self) -> None:
        """Close the sockets of this ring's connections, and its part of the port.  Idempotent.

        What the ring holds is handed to TCP first; what connections still had queued is dropped.

        Raises:
            BufferError: a view is still in use elsewhere; unmapping would crash its user.
            OSError: ``EBUSY``, another thread is in :meth:`exchange`.
        """
        if self._closed:
            return
        check(lib.smr_enter(self._pair.struct), "close")
        self._take_back()
        self._pair.reclaim()
        if self._pair.aside:
            lib.smr_leave(self._pair.struct)
            raise BufferError("a view of received data is still in use; release its slices first")
        self._transmission.begin_closing()
        with contextlib.suppress(OSError):
            self._add_arrivals([])
            self._transmission.send_batch()
        for connection in self._connecting:
            connection._end()
        self._connecting.clear()
        self._pair.close()
        self._transmission.close()
        self._closed = True
        for connection in self._connections.values():
            connection._end()
        self._connections.clear()
        self._attention = False
        self._resumed.clear()
        self._events.clear()
        self._held.clear()
        self._watches.close()

    # -- an exchange that has more to do than most --

    def _deliver_held(self) -> list[Segment]:
        """Return segments that were not delivered yet, instead of receiving more."""
        self.flush()
        held, self._held = self._held, []
        if not (self._placed or self._unclaimed or self._resumed or self._events):
            self._attention = False
        return held

    def _finish_before_wait(self, timeout: float | None) -> float | None:
        """Do the work that must precede a wait; returns how long to wait."""
        if self._after_send:
            self.flush()  # a FIN goes behind written bytes
        if self._resumed or self._events or self._placed:
            return 0.0
        if self._after_send or self._starved or self._attention:
            # The kernel is short of buffers, or another thread is about to return from accept().
            # No event says when that is over.
            return _SHORTAGE if timeout is None else min(timeout, _SHORTAGE)
        return timeout

    def _interrupted(self) -> None:
        """Finish an exchange that the handler of a signal has ended."""
        # Or later writes would overtake them.
        self._transmission.requeue_refused(self._pair.found[1])

    def _complete(self, found: list[Segment] | int | None, timeout: float | None) -> list[Segment]:
        """Finish an exchange that C has not made into segments, or that is not all."""
        if found is None:
            self._take_back()
            return self.exchange(timeout)
        if isinstance(found, list):
            segments, ready = found, 0
        else:
            check(min(found, 0), "sync")
            staged, refused, ready = self._pair.found
            if refused:
                self._transmission.requeue_refused(refused)
            segments = self._segments(found, staged) if found else []
        for connection in self._transmission.take_starved():
            self._resume_sending(connection, segments)
        if self._attention:
            self._add_arrivals(segments)
        if ready:
            try:
                self._watches.run(self._pair.watched(ready))
            except BaseException:
                self._held = segments
                self._look_after()
                raise
        if self._events:
            segments += self._events
            self._events.clear()
        if self._polled and (self._attention or self._starved):
            self._watches.wake()
        return segments

    def _look_after(self) -> None:
        """Have the next exchange do more than others, and soon."""
        self._attention = True
        if self._polled:
            self._watches.wake()

    def _tell(self, connection: Connection, event: Event, code: int = 0) -> None:
        """Have this exchange, or the next, return an event that the kernel does not tell."""
        self._events.append(Segment(connection, memoryview(b""), event, code))
        self._look_after()

    @staticmethod
    def _resume_sending(connection: Connection, segments: list[Segment]) -> None:
        """Send what a connection has queued; tell the application if it may write again."""
        connection._flush()
        if connection._sank_to_low():
            segments.append(Segment(connection, memoryview(b""), Event.WRITABLE, 0))

    # -- receiving --

    def _segments(self, count: int, staged: int) -> list[Segment]:
        """Return the segments that the last exchange received."""
        segments: list[Segment] = []
        append = segments.append
        find = self._connections.get
        pair = self._pair
        if pair.aside:
            pair.reclaim()
        # A copy of its own, so that a view of it can never show other data.
        copied = pair.staged(staged)
        small = memoryview(copied)
        for id, start, buffer, size, flags, code in pair.received(count):
            connection = find(id)
            if connection is None:
                data = pair.payload(start, buffer, size)
                connection = self._connection_for_unknown_id(id, flags, code, data, segments)
                if connection is None:
                    continue
            if connection._deaf:
                data = pair.payload(start, buffer, size)
                self._handle_slot(connection, flags, code, data, segments)
            elif flags & _ACKED:
                self._handle_report(connection, pair.payload(start, buffer, size), segments)
            elif flags:
                self._handle_event(connection, flags, code, segments)
            elif size <= SMALL:
                append(Segment(connection, small[start : start + size], _NO_EVENT, 0))
            elif size <= connection._copy_max or pair.must_copy:
                payload = memoryview(pair.payload(start, buffer, size))
                append(Segment(connection, payload, _NO_EVENT, 0))
            else:
                append(self._fast.lend(connection, start, buffer, size))
        self._fast.show(segments, copied)
        return segments

    def _handle_slot(
        self,
        connection: RingConnection,
        flags: int,
        code: int,
        data: bytes,
        segments: list[Segment],
    ) -> None:
        """Deliver a slot of a connection that may be closing or paused, or hold it back."""
        if flags & _ACKED:
            self._handle_report(connection, data, segments)
            return
        if flags & Event.WRITABLE:
            self._handle_event(connection, Event.WRITABLE, 0, segments)
            flags &= ~Event.WRITABLE
            if not flags:
                return
        if connection._deaf and connection._hold_back(flags, code, data):
            return
        if flags:
            self._handle_event(connection, flags, code, segments)
        elif not connection._closing:
            segments.append(Segment(connection, memoryview(data), _NO_EVENT, 0))

    def _deliver_later(self, connection: RingConnection) -> None:
        """Have the next exchange deliver what a connection held back."""
        self._resumed[connection] = None
        self._look_after()

    def _deliver_held_back(self, segments: list[Segment]) -> None:
        """Deliver what connections held back that take data again, or are closing.

        More is taken from TCP with the exchange after that, unless the application has paused the
        connection again: or it would be given twice as much at a time as the ring holds.
        """
        resumed = list(self._resumed)
        self._resumed.clear()
        for connection in resumed:
            if connection._paused and not connection._closing:
                continue
            held, connection._held_back = connection._held_back, []
            connection._deaf = connection._closing
            for flags, code, data in held:
                self._handle_slot(connection, flags, code, data, segments)
            if connection._paused or connection._released:
                continue  # it was only told that it closes, or it is gone
            if held:
                self._deliver_later(connection)
            else:
                self._kernel.pause(connection.id, paused=False)

    def _handle_event(
        self, connection: RingConnection, flags: int, code: int, segments: list[Segment]
    ) -> None:
        if flags & Event.WRITABLE:
            if connection._waiting:
                self._resume_sending(connection, segments)
            flags &= ~Event.WRITABLE
        if flags & Event.CLOSED:
            if self._connections.get(connection.id) is connection:
                del self._connections[connection.id]
            connection._fail()
        elif connection._closing and (connection._released or not flags & Event.ERROR):
            return
        elif flags & Event.ERROR and not connection._released:
            # TCP may go on after it (IP_RECVERR); this connection does not, as on sockets.
            connection._fail()
        if flags:
            segments.append(Segment(connection, memoryview(b""), _EVENTS[flags], code))

    @staticmethod
    def _handle_report(connection: RingConnection, data: bytes, segments: list[Segment]) -> None:
        """The peer has acknowledged bytes; data is the kernel's struct sm_acked."""
        if not connection._closing:
            connection._acknowledged(int.from_bytes(data, sys.byteorder))
            segments.append(Segment(connection, memoryview(b""), Event.ACKED, 0))

    def _take_back(self) -> None:
        """Release the views of the previous exchange; the next sync returns their slots."""
        if in_use := self._fast.release():
            for segment in in_use:
                if isinstance(segment, LentSegment):
                    self._pair.set_aside(segment)
            warn_in_use(segment.connection for segment in in_use)

    # -- connections that this thread did not make, or whose number it does not know yet --

    def _unnamed_connection(self, sock: socket.socket, peername: Address) -> RingConnection:
        """A connection that this thread accepts; an exchange tells its number."""
        return RingConnection(self, sock, peername=peername)

    def _connection_of_another_thread(
        self, sock: socket.socket, peername: Address
    ) -> RingConnection:
        """A connection that any thread accepts; an exchange of some ring takes it in."""
        return RingConnection(self, sock, peername=peername, announced=True)

    def _finish_connecting(self, connection: RingConnection, code: int = 0) -> None:
        """Attach a connection that connect() began, or tell how it failed."""
        self._connecting.remove(connection)
        sock = connection.sock
        if not code:
            self._watches.remove(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code:
            try:
                attached = self._kernel.attach(sock, self.index)
            except OSError as failure:
                code = failure.errno or errno.EIO
        if code:
            connection._fail()
            self._tell(connection, Event.ERROR, code)
            self._tell(connection, Event.CLOSED)
            return
        connection._place(self, attached.id, attached.record)
        self._connections[connection.id] = connection
        self._tell(connection, Event.OPEN)
        if connection._paused:
            connection._apply_pause()
        if connection._credits is not None:
            connection._apply_credits(connection._credits)
        self._resume_sending(connection, self._events)

    def _stop_connecting(self, connection: RingConnection) -> bool:
        if connection not in self._connecting:
            return False
        self._connecting.remove(connection)
        self._watches.remove(connection.sock)
        self._tell(connection, Event.CLOSED)
        return True

    def _connection_for_unknown_id(
        self, id: int, flags: int, code: int, data: bytes, segments: list[Segment]
    ) -> RingConnection | None:
        """Find or take in the connection of a slot; None if the slot is done with for now."""
        if flags & _OPEN:
            self._unclaimed[id] = Unclaimed(data)
            self._claim(id, segments)
            return None
        if id in self._unclaimed:
            self._unclaimed[id].queue(flags, code, data)
            return None
        with self._placing:  # when we have it, no other thread is about to place it
            self._take_placed(segments)
        return self._connections.get(id)

    def _add_arrivals(self, segments: list[Segment]) -> None:
        """Take in the connections that other threads accept for this ring, or put there."""
        self._attention = False
        self._take_placed(segments)
        for id in list(self._unclaimed):
            self._claim(id, segments)
        self._deliver_held_back(segments)
        self._fast.show(segments)

    def _take_placed(self, segments: list[Segment]) -> None:
        """Take in the connections that other threads put on this ring."""
        while self._placed:
            self._register(self._placed.popleft(), segments)

    def _claim(self, id: int, segments: list[Segment]) -> None:
        """If accept() has returned this connection by now, join the two."""
        unclaimed = self._unclaimed[id]
        listener = self._listeners.get(unclaimed.listener)
        found = listener._claim(unclaimed.peer) if listener else None
        if found is None:
            if unclaimed.abandoned:
                del self._unclaimed[id]
                return
            # Hold it back, with its slots, until another thread has it from accept().
            if not unclaimed.held:
                unclaimed.held = True
                self._kernel.pause(id, paused=True)
            self._attention = True
            return
        del self._unclaimed[id]
        found._place(self, id, unclaimed.record)
        self._register(found, segments)
        for flags, code, data in unclaimed.slots:
            self._handle_slot(found, flags, code, data, segments)
        if found._credits is not None:
            found._apply_credits(found._credits)
        if (unclaimed.held or found._paused) and not found._released:
            found._apply_pause()
        self._resume_sending(found, segments)

    def _register(self, connection: RingConnection, segments: list[Segment]) -> None:
        self._connections[connection.id] = connection
        if connection._announced:
            segments.append(Segment(connection, memoryview(b""), Event.OPEN, 0))

    # -- called by the port --

    def take_extra_buffers(self) -> list[int]:
        """Take the port's extra buffers, of which the kernel has made a list."""
        return self._pair.buffers_linked_from(self._kernel.shared.nifp.ni_bufs_head)

    def _place(self, sock: socket.socket, id: int, record: int) -> RingConnection:
        """Have the ring's thread take in a connection that is attached to this ring.

        Any thread may call this.
        """
        connection = RingConnection(
            self, sock, id, record, peername=_peername(sock), announced=True
        )
        connection.sockname  # noqa: B018 (it is kept)
        self._placed.append(connection)
        self._attention = True
        self.wakeup()
        return connection
