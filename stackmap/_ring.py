"""The first backend: a pair of rings shared with the kernel module, and the connections on it.

One exchange is one system call: it sends the batch that was written, polls the NIC, and returns
what arrived for all connections.  Slots are walked in C, a batch per call (``_ring.c``); batches
with nothing but small messages also become segments there (``_fast.c``).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import os
import select
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

from ._connection import Buffer, Connection, Event, HasFileno, Kept, Port, PortStats, warn_in_use
from ._fast import FastPath, Segment
from ._ring_c import ffi, lib
from ._tcp_state import TcpState
from ._views import LentKept, LentSegment
from ._watch import Watches

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._ring_listener import RingListener
    from ._ring_port import RingPort

#: Bytes that one call of smr_write() takes.  A write makes two at most before its first sync, and
#: one after each.
_WRITE_MAX = 64 * 4096
_SMALL: int = lib.SMR_SMALL
_SEGMENT = struct.Struct("=IIIHBB")
#: Seconds between two tries while the kernel is short of buffers.
_SHORTAGE = 0.01
#: Seconds for which a connection that has ended waits for accept() to return it in another thread.
_ABANDONED_AFTER = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_NO_EVENT = Event.NONE
_EVENTS = [Event(flags) for flags in range(64)]
#: listener, record, family, port and address of a struct sm_open
_OPENED = struct.Struct("=IIH2s16s")
_SLOT_OPEN = Event.OPEN.value


class RingConnection(Connection):
    """One TCP connection whose payload travels in ring slots."""

    __slots__ = ("_announced", "_failed", "_fast", "_paused", "_record", "_released", "ring")

    def __init__(
        self, ring: Ring, sock: socket.socket, id: int, record: int, *, announced: bool = False
    ) -> None:
        super().__init__(sock, id)
        # Its ring's thread does not know it, and is told by an OPEN event.
        self._announced = announced
        #: The ring that carries it.
        self.ring = ring
        self._fast = ring._fast
        self._record = record
        self._paused = False
        self._released = False
        # It ended by itself, which the application may not have seen yet.
        self._failed = False

    def __repr__(self) -> str:
        return f"<RingConnection {self.id}{', closed' if self._released else ''}>"

    def abort(self) -> None:
        """Close at once with RST; queued and unacknowledged data is dropped."""
        if not self._released:
            self._closing = self._shutdown = True
            self._drop_queue()
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            if self.id:
                self._close_socket()
            else:
                self._wait_for_name()  # it is named by its peer, which closing would forget

    def pause_reading(self) -> None:
        """Take no more data from TCP, so that its window closes.  Idempotent."""
        if not self._paused and not self._released:
            self._paused = True
            self.ring._pause(self)

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`.  Idempotent."""
        if self._paused:
            self._paused = False
            if not self._released:
                self.ring._pause(self)

    def write(self, data: Buffer) -> None:
        """Send ``data``; see :meth:`Connection.write`."""
        # The common case without the generality of _send(): bytes that fit into the ring.
        if not (self._waiting or self._shutdown):
            taken = self._fast.write(self.id, data)
            if taken is None:
                return
            data = memoryview(data).cast("B")[taken:]
        elif self._failed:
            return  # lost, as what was written just before
        super().write(data)

    def forward(self, segment: Segment | Kept) -> None:
        """Send received bytes on without a copy; see :meth:`Connection.forward`.

        The page that holds the payload goes from the receive ring to the transmit ring.  Payloads
        of up to 512 bytes, what another port received, and what must wait are copied.

        Raises:
            BufferError: a slice of the segment's view is still in use.
        """
        if (
            isinstance(segment, LentSegment | LentKept)
            and segment.lent
            and segment.ring._port is self.ring._port
            and not (self._waiting or self._shutdown)
            and segment.forward(self.ring, self.id)
        ):
            return
        super().forward(segment)

    def tcp_state(self) -> TcpState:
        """Return TCP's state of the connection, without a system call.

        Raises:
            OSError: ``ENOENT``, the kernel has no state of it: it is closed, or so new that it
                has not been part of an exchange yet.
        """
        state = ffi.new("struct sm_state *")
        self.ring._check(lib.smr_state(self.ring._shared, self._record, self.id, state), "state")
        return TcpState(*[getattr(state, name) for name in TcpState._fields])

    def _wait_for_name(self) -> None:
        """Keep written bytes, and the end, in the queue until the ring has numbered it."""
        self._waiting.append(memoryview(b""))

    # -- required by Connection --

    def _send(self, data: Buffer) -> int:
        ring = self.ring
        size = len(data)
        source = ffi.from_buffer(data)
        taken: int = lib.smr_write(ring._pair, self.id, source, min(size, _WRITE_MAX))
        waiting = len(self._waiting)
        while taken < size:
            # The ring is full, or this is a large write.  A sync empties the ring, unless the
            # kernel is short of buffers; it may also give slots of this connection back, and
            # then the rest must wait behind them.
            ring._send_batch()
            if len(self._waiting) > waiting or self._released:
                break
            more = lib.smr_write(ring._pair, self.id, source + taken, min(size - taken, _WRITE_MAX))
            if not more:
                ring._starved[self] = None
                break
            taken += more
        return taken

    def _send_fin(self) -> None:
        self.ring._after_send.append(self)

    def _release(self) -> None:
        self.ring._after_send.append(self)

    # -- called by the port once this connection's slots have been handed to TCP --

    def _finish(self) -> None:
        if self._released or self._waiting:
            return  # closed meanwhile, or given something back: _flush() comes here again
        if self._closing:
            self._close_socket()
        else:
            with contextlib.suppress(OSError):  # reset meanwhile: an event says so
                self.sock.shutdown(socket.SHUT_WR)

    def _fail(self) -> None:
        """It has ended, and if the application did not ask for that, writing is no error."""
        self._failed = self._failed or not self._shutdown
        self._end()

    def _end(self) -> None:
        """Close at once, and drop the queue."""
        self._closing = self._shutdown = True
        self._drop_queue()
        self._close_socket()

    def _close_socket(self) -> None:
        if not self._released:
            self._released = True
            self.sock.close()


class _Unclaimed:
    """A connection, and its slots, that the ring reports before accept() has returned it."""

    __slots__ = ("abandoned", "held", "listener", "peer", "record", "slots")

    def __init__(self, listener: int, record: int, peer: tuple[bytes, bytes]) -> None:
        self.listener = listener
        self.record = record
        self.peer = peer
        self.held = False
        #: The time after which no claim is expected any more.
        self.abandoned = math.inf
        self.slots: list[tuple[int, int, bytes]] = []

    def hear(self, flags: int, code: int, data: bytes) -> None:
        """Keep a slot that arrived for it."""
        self.slots.append((flags, code, data))
        if flags & Event.CLOSED:
            self.abandoned = time.monotonic() + _ABANDONED_AFTER


class Ring(Port):
    """A transmit and a receive ring of a :class:`RingPort`, for one thread.

    It is a port of its own to that thread: it has connections, watched files and exchanges of its
    own.  :meth:`stats` are those of the whole port.
    """

    backend: ClassVar[str] = "stackmap"

    def __init__(self, port: RingPort, index: int, spin: float) -> None:
        #: The number of this pair of rings in the port.
        self.index = index
        self._port = port
        self._shared: Any = port._shared
        self._pair: Any = ffi.new("struct smr_pair *", {"fd": -1})
        tx_slots, rx_slots = port._tx_slots, port._rx_slots
        self._arrays = {
            "received": ffi.new("struct smr_segment[]", rx_slots),
            "staging": ffi.new("char[]", lib.SMR_STAGING_START + rx_slots * _SMALL),
            "refused": ffi.new("struct smr_segment[]", tx_slots),
            "found": ffi.new("int32_t[]", 3),
            "watched": ffi.new("int32_t[]", lib.SMR_WATCHED),
        }
        for name, array in self._arrays.items():
            setattr(self._pair, name, array)
        self._received = ffi.buffer(self._arrays["received"])
        self._staging = ffi.buffer(self._arrays["staging"])
        self._refused = self._arrays["refused"]
        self._found = memoryview(ffi.buffer(self._arrays["found"])).cast("B").cast("i")
        self._watched = self._arrays["watched"]
        self._pair.spin_us = round(spin * 1e6)
        self._page_size: int = 4096
        self._pages: dict[int, Any] = {}
        self._lent: list[LentSegment] = []
        # Buffers whose pages slices of views still show, by number.  Each costs a spare buffer of
        # the port: with a quarter of this ring's share gone, received pages are copied.
        self._aside: dict[int, Any] = {}
        self._aside_max = max(1, port._spare_buffers // (4 * port._pairs))
        self._small = bytes(lib.SMR_STAGING_START)  # not b"", which others refer to
        self._shown: list[Segment] = []
        self._held: list[Segment] = []  # of an exchange that a callback's exception ended
        self._connections: dict[int, RingConnection] = {}
        self._after_send: list[RingConnection] = []
        self._starved: dict[RingConnection, None] = {}
        # Connections that other threads put here, and those that accept() has not returned yet.
        self._placed: collections.deque[RingConnection] = collections.deque()
        self._unclaimed: dict[int, _Unclaimed] = {}
        self._unsettled = False
        self._closed = False
        self._epoll = select.epoll()
        self._watches = Watches(self._epoll)
        self._pair.epoll = self._epoll.fileno()
        self._fast = FastPath(int(ffi.cast("uintptr_t", self._pair)), self._pair, _NO_EVENT)
        self._check(lib.smr_open_pair(self._pair, self._shared, index), "ring")
        try:
            self._epoll.register(self._pair.fd, select.EPOLLIN)
        except OSError:
            lib.smr_close_pair(self._pair)
            raise

    def __repr__(self) -> str:
        return f"<Ring {self.index} of {self._port!r}>"

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`exchange` would return something."""
        return self._epoll.fileno()

    # -- the contract --

    def attach(self, sock: socket.socket) -> RingConnection:
        """Take over the payload of an established TCP connection.

        TCP_NODELAY is set: a batch is already what Nagle's algorithm would wait for.

        Raises:
            OSError: ``EOPNOTSUPP`` (not TCP), ``EINVAL`` (listening), ``ENOTCONN``, ``EALREADY``
                (attached here or elsewhere), ``EBUSY`` (taken by kTLS, sockmap, KCM or SMC, or in
                TCP_REPAIR mode, or a call waits to send on it), ``EXDEV`` (of another network
                namespace), ``ENOSPC`` (the port has all the connections that it may have).
        """
        attached = self._port._attach(sock, self.index)
        connection = RingConnection(self, sock, attached.id, attached.record)
        self._connections[connection.id] = connection
        return connection

    def attach_listener(self, sock: socket.socket) -> RingListener:
        """Attach the connections of a listening socket to this ring from the first byte.

        No system call is made for a connection but accept() itself.

        Raises:
            OSError: ``EINVAL`` (not listening), or as :meth:`attach`.
        """
        return self._port._attach_listener(sock, self)

    def detach(self, connection: RingConnection) -> None:
        """Make the connection's socket an ordinary one again.

        What was written, and a FIN if it was asked for, is handed to TCP first.  What is in the
        receive ring still comes, up to ``Event.CLOSED``; everything after it is read from
        ``connection.sock``, which the caller now owns.

        Raises:
            OSError: ``ENOENT``, the connection is gone already; ``EAGAIN``, the library
                (:attr:`Connection.pending`) or the ring still holds unsent data: exchange, and
                try again.
            ValueError: the port is closed, or the connection is on another ring.
        """
        if connection.ring is not self:
            raise ValueError(f"{connection!r} is on another ring")
        self._send_batch()
        self._finish_sent()
        if connection._released:
            raise OSError(errno.ENOENT, "the connection is gone")
        if connection._waiting or self._pair.tx_synced != self._pair.tx_head:
            raise OSError(errno.EAGAIN, "the connection has unsent data")
        self._check(lib.smr_detach(self._shared, connection.id), "detach")
        connection._released = connection._shutdown = True

    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        """Send everything written, and return everything received; see :meth:`Port.exchange`."""
        if self._held:
            return self._deliver_held()
        if self._shown:
            self._take_back()
        if self._after_send or self._starved or self._unsettled:
            timeout = self._finish_first(timeout)
        try:
            found = self._fast.exchange(timeout, self._connections)
        except BaseException:  # of a signal's handler
            self._give_back(self._found[1])  # or later writes would overtake them
            raise
        if type(found) is list and not (self._starved or self._unsettled):
            return found
        if found is None:
            self._let_go(self._fast.release())
            return self.exchange(timeout)
        return self._sort_out(found)

    def keep(self, segment: Segment) -> Kept:
        """Have the payload of a segment stay valid beyond the next exchange; see :meth:`Port.keep`.

        Raises:
            BufferError: a slice of the segment's view is still in use.
        """
        extra = self._port._extra
        if isinstance(segment, LentSegment) and segment.lent and segment.ring is self and extra:
            spare = extra.pop()
            try:
                return segment.keep(spare)
            except BufferError:
                extra.append(spare)
                raise
        return super().keep(segment)

    def watch(self, file: HasFileno | int, callback: Callable[[], object]) -> None:
        """Call ``callback`` whenever ``file`` is readable; see :meth:`Port.watch`."""
        self._watches.add(file, callback)
        self._pair.watching = True

    def unwatch(self, file: HasFileno | int) -> None:
        """Stop watching ``file``; see :meth:`Port.unwatch`."""
        self._watches.remove(file)
        self._pair.watching = bool(self._watches)

    def stats(self) -> PortStats:
        """The kernel's counters since the port was opened, of all its rings."""
        return self._port._stats()

    def close(self) -> None:
        """Close the sockets of this ring's connections, and its part of the port.  Idempotent.

        What the ring holds is handed to TCP first; what connections still had queued is dropped.

        Raises:
            BufferError: a view is still in use elsewhere; unmapping would crash its user.
            OSError: ``EBUSY``, another thread is in :meth:`exchange`.
        """
        if self._closed:
            return
        self._check(lib.smr_enter(self._pair), "close")
        self._take_back()
        self._let_go(self._fast.release())
        self._reclaim()
        if self._aside:
            lib.smr_leave(self._pair)
            raise BufferError("a view of received data is still in use; release its slices first")
        with contextlib.suppress(OSError):
            self._settle([])
            self._send_batch()
        lib.smr_close_pair(self._pair)
        self._closed = True
        for connection in self._connections.values():
            connection._end()
        self._connections.clear()
        self._after_send.clear()
        self._starved.clear()
        self._unsettled = False
        self._held.clear()
        self._watches.clear()
        self._epoll.close()
        self._pages.clear()

    def _deliver_held(self) -> list[Segment]:
        """Return segments that were not delivered yet, instead of receiving more."""
        self._send_batch()
        self._finish_sent()
        held, self._held = self._held, []
        return held

    def _finish_first(self, timeout: float | None) -> float | None:
        """Do the work that must precede a wait; returns how long to wait."""
        if self._after_send:
            # A FIN goes behind written bytes.
            self._send_batch()
            self._finish_sent()
        if self._after_send or self._starved or self._unsettled:
            # The kernel is short of buffers, or another thread is about to return from accept().
            # No event says when that is over.
            return _SHORTAGE if timeout is None else min(timeout, _SHORTAGE)
        return timeout

    # -- receiving --

    def _sort_out(self, found: list[Segment] | int) -> list[Segment]:
        """Go on where an exchange was not one of the usual, quick ones."""
        if isinstance(found, list):
            segments, ready = found, 0
        else:
            self._check(min(found, 0), "sync")
            staged, refused, ready = self._found
            if refused:
                self._give_back(refused)
            segments = self._segments(found, staged) if found else []
        if self._starved:
            self._feed(segments)
        if self._unsettled:
            self._settle(segments)
        if ready:
            try:
                self._watches.run(list(self._watched[0:ready]))
            except BaseException:
                self._held = segments
                raise
        return segments

    def _segments(self, count: int, staged: int) -> list[Segment]:
        """Return the segments that the last exchange received."""
        segments: list[Segment] = []
        append = segments.append
        find = self._connections.get
        # A copy of its own, so that a view of it can never show other data.
        self._small = self._staging[:staged]
        small = memoryview(self._small)
        for id, start, buf, size, flags, code in _SEGMENT.iter_unpack(
            self._received[: count * _SEGMENT.size]
        ):
            connection = find(id)
            if connection is None:
                data = self._copy(start, buf, size)
                connection = self._stranger(id, flags, code, data, segments)
                if connection is None:
                    continue
            if flags:
                self._event(connection, flags, code, segments)
            elif connection._closing:
                continue
            elif size <= _SMALL:
                append(Segment(connection, small[start : start + size], _NO_EVENT, 0))
            elif len(self._aside) >= self._aside_max:
                append(Segment(connection, memoryview(self._copy(start, buf, size)), _NO_EVENT, 0))
            else:
                page = self._pages.get(buf)
                if page is None:
                    page = self._page(buf)
                offset = start & 0xFFFF
                where = slice(offset, offset + size)
                lent = LentSegment(self, connection, page, where, start >> 16)
                append(lent)
                self._lent.append(lent)
        self._shown = segments.copy()  # because the caller may take segments out of its list
        return segments

    def _page(self, index: int) -> Any:
        """A Python buffer for one page; the mapping does not move, so it is made once."""
        page = ffi.buffer(lib.smr_buffer(self._pair, index), self._page_size)
        self._pages[index] = page
        return page

    def _event(
        self, connection: RingConnection, flags: int, code: int, segments: list[Segment]
    ) -> None:
        if flags & Event.WRITABLE:
            if connection._waiting:
                self._resume(connection, segments)
            flags &= ~Event.WRITABLE
        if flags & Event.CLOSED:
            del self._connections[connection.id]
            connection._fail()
        elif connection._closing and (connection._released or not flags & Event.ERROR):
            return
        elif flags & Event.ERROR and not connection._released:
            # TCP may go on after it (IP_RECVERR); this connection does not, as on sockets.
            connection._fail()
        if flags:
            segments.append(Segment(connection, memoryview(b""), _EVENTS[flags], code))

    def _take_back(self) -> None:
        """Release the views of the previous exchange; the next sync returns their slots."""
        if self._aside:
            self._reclaim()
        segments, self._shown = self._shown, []
        lent, self._lent = self._lent, []
        held: list[Segment] = [segment for segment in lent if not segment.take_back()]
        in_use = False
        for segment in segments:
            try:
                segment.view.release()
            except BufferError:
                in_use = True
        # referenced by us, and as the argument; anything more is a view's slice
        if in_use or sys.getrefcount(self._small) > 2:
            held = segments
        if held:
            self._small = self._staging[: lib.SMR_STAGING_START]
            warn_in_use(segment.connection for segment in held)

    def _set_aside(self, page: Any, slot: int) -> None:
        """Take a page that is still in use out of the receive ring."""
        self._reclaim()
        extra = self._port._extra
        spare = extra.pop() if extra else 0  # 0: one of the kernel's
        self._aside[lib.smr_keep(self._pair, slot, spare)] = page

    def _reclaim(self) -> None:
        """Take back buffers with pages that are not in use any more."""
        for buf, page in list(self._aside.items()):
            # Besides page: both tables, the list, and the argument.
            if sys.getrefcount(page) <= 5:
                del self._aside[buf]
                self._port._extra.append(buf)

    @staticmethod
    def _let_go(segments: list[Segment] | None) -> None:
        """Leave the memory of small payloads to views that still use it."""
        if segments is not None:
            for segment in segments:
                with contextlib.suppress(BufferError):
                    segment.view.release()
            warn_in_use(segment.connection for segment in segments)

    # -- connections that this thread did not make --

    def _copy(self, start: int, buf: int, size: int) -> bytes:
        """The payload of one received slot."""
        if size <= _SMALL:
            return self._small[start : start + size]
        start &= 0xFFFF
        return bytes(memoryview(self._page(buf))[start : start + size])

    def _stranger(
        self, id: int, flags: int, code: int, data: bytes, segments: list[Segment]
    ) -> RingConnection | None:
        """Return the connection of a slot; None if there is nothing to do for it now."""
        if flags & _SLOT_OPEN:
            listener, record, _family, port, address = _OPENED.unpack(data)
            self._unclaimed[id] = _Unclaimed(listener, record, (port, address))
            self._claim(id, segments)
            return None
        if id in self._unclaimed:
            self._unclaimed[id].hear(flags, code, data)
            return None
        with self._port._placing:  # when we have it, no other thread is about to place it
            self._admit(segments)
        return self._connections.get(id)

    def _settle(self, segments: list[Segment]) -> None:
        """See to the connections that other threads accept for this ring, or put there."""
        self._unsettled = False
        self._admit(segments)
        for id in list(self._unclaimed):
            self._claim(id, segments)
        self._shown = segments.copy()

    def _admit(self, segments: list[Segment]) -> None:
        """Take the connections that other threads put on this ring."""
        while self._placed:
            self._begin(self._placed.popleft(), segments)

    def _claim(self, id: int, segments: list[Segment]) -> None:
        """If accept() has returned this connection by now, join the two."""
        unclaimed = self._unclaimed[id]
        found = self._port._accepted_by(unclaimed.listener, unclaimed.peer)
        if found is None:
            if time.monotonic() > unclaimed.abandoned:
                del self._unclaimed[id]
                return
            # Hold it back, with its slots, until another thread has it from accept().
            if not unclaimed.held:
                unclaimed.held = True
                lib.smr_pause(self._shared, id, True)
            self._unsettled = True
            return
        del self._unclaimed[id]
        found.id = id
        found.ring = self
        found._fast = self._fast
        found._record = unclaimed.record
        self._begin(found, segments)
        for flags, code, data in unclaimed.slots:
            if flags:
                self._event(found, flags, code, segments)
            elif not found._closing:
                segments.append(Segment(found, memoryview(data), _NO_EVENT, 0))
        if unclaimed.held or found._paused:
            self._pause(found)
        queued = bool(found._waiting_bytes)
        if found._flush() and queued and not found._closing:
            segments.append(Segment(found, memoryview(b""), Event.WRITABLE, 0))

    def _begin(self, connection: RingConnection, segments: list[Segment]) -> None:
        self._connections[connection.id] = connection
        if connection._announced:
            segments.append(Segment(connection, memoryview(b""), Event.OPEN, 0))

    # -- sending --

    def _send_batch(self) -> None:
        """Hand written bytes to TCP now, in the middle of a batch."""
        if self._closed:
            raise ValueError("the port is closed")
        refused = lib.smr_send(self._pair)
        if refused < 0:
            self._check(refused, "sync")
        if refused:
            self._give_back(refused)

    def _give_back(self, count: int) -> None:
        """Queue slots again that were refused with EAGAIN; drop those that can never be sent."""
        again: dict[RingConnection, list[bytes]] = {}
        self._found[1] = 0
        for i in range(count):
            slot = self._refused[i]
            connection = self._connections.get(slot.id)
            if connection is None or connection._released:
                continue
            if slot.err == errno.EAGAIN:
                start = lib.smr_buffer(self._pair, slot.buf) + slot.start
                again.setdefault(connection, []).append(bytes(ffi.buffer(start, slot.len)))
            else:
                connection._drop_queue()
        for connection, parts in again.items():
            for part in reversed(parts):
                connection._requeue(part)

    def _feed(self, segments: list[Segment]) -> None:
        """Go on with connections whose data found the ring full."""
        starved, self._starved = self._starved, {}
        for connection in starved:
            if connection._waiting and not connection._released:
                self._resume(connection, segments)

    def _resume(self, connection: RingConnection, segments: list[Segment]) -> None:
        """Send what a connection has queued; tell the application if that was all."""
        if connection._flush() and not connection._closing:
            segments.append(Segment(connection, memoryview(b""), Event.WRITABLE, 0))

    def _finish_sent(self) -> None:
        """Shut down or close connections as asked for, once their slots are sent."""
        if self._pair.tx_synced != self._pair.tx_head:
            return
        finish, self._after_send = self._after_send, []
        for connection in finish:
            connection._finish()

    # -- the rest --

    def _pause(self, connection: RingConnection) -> None:
        error = lib.smr_pause(self._shared, connection.id, connection._paused)
        if error and error != -errno.ENOENT:  # ENOENT: closed by the peer meanwhile
            self._check(error, "pause")

    @staticmethod
    def _check(error: int, what: str) -> None:
        if error:
            raise OSError(-error, f"{what}: {os.strerror(-error)}")
