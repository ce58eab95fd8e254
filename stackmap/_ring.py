"""The first backend: rings shared with the kernel module.

One exchange is one system call: it sends the batch that was written, polls the NIC, and returns
what arrived for all connections.  Slots are walked in C, a batch per call (:mod:`_ring.c`).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from ._errors import BackendUnavailableError
from ._port import Buffer, Connection, Event, HasFileno, Port, PortStats, Segment
from ._ring_c import ffi, lib
from ._watch import Watches

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = "/dev/stackmap"

#: Bytes written to a connection between two syncs: bounds what TCP may give back.
_WRITE_MAX = 64 * 4096
_SMALL: int = lib.SMR_SMALL
_SEGMENT = struct.Struct("=IIIHBB")
#: Seconds between two tries while the kernel is short of buffers.
_SHORTAGE = 0.01
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_NO_EVENT = Event.NONE
_EVENTS = [Event(flags) for flags in range(16)]
_smr_write = lib.smr_write
_smr_exchange = lib.smr_exchange
#: References to a lent page that are not a view's: the list of pages, the list of lent ones, and
#: the argument of getrefcount().
_OWN_REFERENCES = 3
_IN_USE = (
    "a view received from {} is still in use; "
    "release its slices (or copy them) before the next exchange"
)

_OPEN_ERRORS = {
    errno.ENOENT: "{device} does not exist: load the kernel module (`stackmap bind NIC` does)",
    errno.EACCES: "you may not open {device}: run this as root, or give yourself access to it",
    errno.EPERM: "opening a port needs CAP_NET_ADMIN: run this as root",
    errno.ENXIO: "the NIC {nic} is not bound: run `stackmap bind {nic}` first",
    errno.ENOMEM: "there is not enough kernel memory for {tx} transmit and {rx} receive slots:"
    " ask for fewer",
    errno.EINVAL: "the module refuses rings of {tx} and {rx} slots: it takes 4 to 16384",
}


class RingConnection(Connection):
    """One TCP connection whose payload travels in ring slots."""

    __slots__ = ("_paused", "_port", "_released", "_ring")

    def __init__(self, port: RingPort, sock: socket.socket, id: int) -> None:
        super().__init__(sock, id)
        self._port = port
        self._ring = port._ring
        self._paused = False
        self._released = False

    def __repr__(self) -> str:
        return f"<RingConnection {self.id}{', closed' if self._released else ''}>"

    def abort(self) -> None:
        """Close at once with RST; queued and unacknowledged data is dropped."""
        if not self._released:
            self._closing = self._shutdown = True
            self._drop_queue()
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._close_socket()

    def pause_reading(self) -> None:
        """Take no more data from TCP, so that its window closes.  Idempotent."""
        if not self._paused and not self._released:
            self._paused = True
            self._port._pause(self)

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`.  Idempotent."""
        if self._paused:
            self._paused = False
            if not self._released:
                self._port._pause(self)

    def write(self, data: Buffer) -> None:
        """Send ``data``; see :meth:`Connection.write`."""
        # The common case without the generality of _send(): bytes that fit into the ring.
        if not self._waiting and not self._shutdown:
            if type(data) is memoryview and len(data) <= _SMALL:
                data = data.tobytes()  # costs less than lending so little to C
            if type(data) is bytes:
                size = len(data)
                if size <= _WRITE_MAX:
                    taken = _smr_write(self._ring, self.id, data, size)
                    if taken == size:
                        return
                    data = memoryview(data)[taken:]
        super().write(data)

    # -- what Connection asks of a backend --

    def _send(self, data: Buffer) -> int:
        port = self._port
        size = len(data)
        source = ffi.from_buffer(data)
        taken: int = lib.smr_write(port._ring, self.id, source, min(size, _WRITE_MAX))
        waiting = len(self._waiting)
        while taken < size:
            # The ring is full, or this is a large write.  A sync empties the ring, unless the
            # kernel is short of buffers; it may also give slots of this connection back, and
            # then the rest must wait behind them.
            port._send_batch()
            if len(self._waiting) > waiting or self._released:
                break
            more = lib.smr_write(port._ring, self.id, source + taken, min(size - taken, _WRITE_MAX))
            if not more:
                port._starved[self] = None
                break
            taken += more
        return taken

    def _send_fin(self) -> None:
        self._port._after_send.append(self)

    def _release(self) -> None:
        self._port._after_send.append(self)

    # -- called by the port once this connection's slots have been handed to TCP --

    def _finish(self) -> None:
        if self._released or self._waiting:
            return  # closed meanwhile, or given something back: _flush() comes here again
        if self._closing:
            self._close_socket()
        else:
            with contextlib.suppress(OSError):  # reset meanwhile: an event says so
                self.sock.shutdown(socket.SHUT_WR)

    def _close_socket(self) -> None:
        if not self._released:
            self._released = True
            self.sock.close()


class RingPort(Port):
    """A port on a NIC that ``stackmap bind`` has bound.

    Args:
        nic: the NIC's name.
        tx_slots: size of the transmit ring.  The kernel adds four spare buffers (4 KiB each) per
            slot, which is what can be pinned waiting for acknowledgements.
        rx_slots: size of the receive ring.
        spin: seconds for which an exchange that finds nothing polls the NIC before it returns or
            sleeps, at most 0.001.

    Raises:
        BackendUnavailableError: no module, no right, or the NIC is not bound.
    """

    backend: ClassVar[str] = "stackmap"

    def __init__(
        self, nic: str, *, tx_slots: int = 1024, rx_slots: int = 1024, spin: float = 0.0
    ) -> None:
        self._ring = ffi.new("struct smr_port *")
        self._ring.fd = -1
        error = lib.smr_open(self._ring, DEVICE.encode(), nic.encode(), tx_slots, rx_slots)
        if error:
            sentence = _OPEN_ERRORS.get(-error, f"{DEVICE}: {os.strerror(-error)}")
            raise BackendUnavailableError(
                sentence.format(device=DEVICE, nic=nic, tx=tx_slots, rx=rx_slots)
            )
        self._arrays = {
            "received": ffi.new("struct smr_segment[]", rx_slots),
            "staging": ffi.new("char[]", lib.SMR_STAGING_START + rx_slots * _SMALL),
            "refused": ffi.new("struct smr_segment[]", tx_slots),
            "found": ffi.new("int32_t[]", 3),
            "watched": ffi.new("int32_t[]", lib.SMR_WATCHED),
        }
        for name, array in self._arrays.items():
            setattr(self._ring, name, array)
        self._received = ffi.buffer(self._arrays["received"])
        self._staging = ffi.buffer(self._arrays["staging"])
        self._refused = self._arrays["refused"]
        self._found = memoryview(ffi.buffer(self._arrays["found"])).cast("B").cast("i")
        self._watched = self._arrays["watched"]
        self._ring.spin_us = round(spin * 1e6)
        self._page_size: int = 4096
        self._pages: dict[int, Any] = {}
        self._lent: list[tuple[Any, Segment]] = []
        self._small = b""
        self._shown: list[Segment] = []
        self._connections: dict[int, RingConnection] = {}
        self._after_send: list[RingConnection] = []
        self._starved: dict[RingConnection, None] = {}
        self._final_stats: PortStats | None = None
        self._epoll = select.epoll()
        self._watches = Watches(self._epoll)
        self._epoll.register(self._ring.fd, select.EPOLLIN)
        self._ring.epoll = self._epoll.fileno()

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`exchange` would return something."""
        return self._epoll.fileno()

    # -- the contract --

    def attach(self, sock: socket.socket) -> RingConnection:
        """Take over the payload of an established TCP connection.

        TCP_NODELAY is set: a batch is already what Nagle's algorithm would wait for.

        Raises:
            OSError: ``EOPNOTSUPP`` (not TCP), ``EINVAL`` (listening), ``ENOTCONN``, ``EALREADY``
                (attached here or elsewhere), ``EBUSY`` (taken by kTLS, sockmap or KCM), ``EXDEV``
                (of another network namespace).
        """
        id = ffi.new("uint32_t *")
        self._check(lib.smr_attach(self._ring, sock.fileno(), id), "attach")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = RingConnection(self, sock, id[0])
        self._connections[id[0]] = connection
        return connection

    def detach(self, connection: RingConnection) -> None:
        """Make the connection's socket an ordinary one again.

        What was written is handed to TCP first.  What is in the receive ring still comes, up to
        ``Event.CLOSED``; everything after it is read from ``connection.sock``, which the caller
        now owns.

        Raises:
            OSError: ``ENOENT``, the connection is gone already; ``EAGAIN``, it has unsent data
                (:attr:`Connection.pending`): exchange until ``Event.WRITABLE``.
        """
        self._send_batch()
        if connection._waiting or self._ring.tx_synced != self._ring.tx_head:
            raise OSError(errno.EAGAIN, "the connection has unsent data")
        self._check(lib.smr_detach(self._ring, connection.id), "detach")
        connection._released = connection._shutdown = True

    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        """Send everything written, and return everything received; see :meth:`Port.exchange`."""
        self._take_back()
        if self._after_send:
            # A FIN goes behind what was written, but must not wait until something arrives.
            self._send_batch()
            self._finish_sent()
        if self._after_send or self._starved:
            # The kernel is short of buffers.  No event says when it has some again.
            timeout = _SHORTAGE if timeout is None else min(timeout, _SHORTAGE)
        count = _smr_exchange(self._ring, -1 if timeout is None else math.ceil(timeout * 1000))
        found = self._found
        if count < 0:
            self._check(count, "sync")
        if found[1]:
            self._give_back(found[1])
        segments = self._segments(count, found[0]) if count else []
        if self._starved:
            self._feed(segments)
        if found[2]:
            self._watches.run(list(self._watched[0 : found[2]]))
        return segments

    def watch(self, file: HasFileno, callback: Callable[[], None]) -> None:
        """Call ``callback`` from :meth:`exchange` whenever ``file`` is readable."""
        self._watches.add(file, callback)

    def unwatch(self, file: HasFileno) -> None:
        """Stop watching ``file``."""
        self._watches.remove(file)

    def stats(self) -> PortStats:
        """The kernel's counters since the port was opened."""
        if self._final_stats is not None:
            return self._final_stats
        st = ffi.new("struct smr_stats *")
        self._check(lib.smr_stats(self._ring, st), "stats")
        return PortStats(
            ring_bytes_rx=st.rx_bytes,
            ring_bytes_tx=st.tx_bytes,
            slots_sent=st.slots_sent,
            slots_released_by_ack=st.slots_released_ack,
            slots_released_by_reset=st.slots_released_reset,
            slots_pinned=st.slots_pinned,
            bad_slots=st.bad_slots,
            unknown_connections=st.unknown_conn,
            slots_refused_again=st.slots_again,
            bad_rings=st.bad_rings,
        )

    def close(self) -> None:
        """Close the port and the sockets of its connections.  Idempotent.

        What the ring holds is handed to TCP first; what connections still had queued is dropped.

        Raises:
            BufferError: a view is still in use elsewhere; unmapping would crash its user.
        """
        if self._final_stats is not None:
            return
        self._take_back()
        with contextlib.suppress(OSError):
            self._send_batch()
        for connection in self._connections.values():
            connection._closing = connection._shutdown = True
            connection._drop_queue()
            connection._close_socket()
        self._connections.clear()
        self._final_stats = self.stats()
        self._watches.clear()
        self._epoll.close()
        self._pages.clear()
        lib.smr_close(self._ring)

    # -- receiving --

    def _segments(self, count: int, staged: int) -> list[Segment]:
        """What the last exchange received."""
        segments: list[Segment] = []
        append = segments.append
        find = self._connections.get
        new = object.__new__
        # A copy of its own, so that a view of it can never show other data.
        self._small = self._staging[:staged]
        small = memoryview(self._small)
        for id, start, buf, size, flags, code in _SEGMENT.iter_unpack(
            self._received[: count * _SEGMENT.size]
        ):
            connection = find(id)
            if connection is None:
                continue
            if flags:
                self._event(connection, flags, code, segments)
            elif connection._closing:
                continue
            elif size <= _SMALL:
                # Segment(...) in steps: a call of its __init__() would cost twice as much.
                segment = new(Segment)
                segment.connection = connection
                segment.view = small[start : start + size]
                segment.event = _NO_EVENT
                segment.errno = 0
                append(segment)
            else:
                page = self._pages.get(buf)
                if page is None:
                    page = self._page(buf)
                view = memoryview(page)[start : start + size].toreadonly()
                segment = Segment(connection, view, _NO_EVENT, 0)
                segments.append(segment)
                self._lent.append((page, segment))
        self._shown = segments
        return segments

    def _page(self, index: int) -> Any:
        """A Python buffer for one page; the mapping does not move, so it is made once."""
        page = ffi.buffer(lib.smr_buffer(self._ring, index), self._page_size)
        self._pages[index] = page
        return page

    def _event(
        self, connection: RingConnection, flags: int, code: int, segments: list[Segment]
    ) -> None:
        if flags & Event.WRITABLE:
            if connection._waiting:
                self._resume(connection, segments)
            flags &= ~Event.WRITABLE
        if flags & Event.ERROR:
            connection._drop_queue()
        if flags & Event.CLOSED:
            del self._connections[connection.id]
            connection._closing = connection._shutdown = True
            connection._drop_queue()
            connection._close_socket()
        elif connection._closing and not flags & Event.ERROR:
            return
        if flags:
            segments.append(Segment(connection, memoryview(b""), _EVENTS[flags], code))

    def _take_back(self) -> None:
        """Release the views of the previous exchange; the next sync returns their slots."""
        segments = self._shown
        if not segments:
            return
        lent = self._lent
        while lent:
            page, segment = lent[-1]
            try:
                segment.view.release()
                # One more than our own for the name "page".
                in_use = sys.getrefcount(page) > _OWN_REFERENCES + 1
            except BufferError:
                in_use = True
            if in_use:
                raise BufferError(_IN_USE.format(segment.connection))
            lent.pop()
        try:
            for segment in segments:
                segment.view.release()
            in_use = sys.getrefcount(self._small) > _OWN_REFERENCES - 1
        except BufferError:
            in_use = True
        if in_use:
            owners = {repr(segment.connection) for segment in segments}
            raise BufferError(_IN_USE.format(" or ".join(sorted(owners))))
        self._shown = []

    # -- sending --

    def _send_batch(self) -> None:
        """Hand what was written to TCP now, in the middle of a batch."""
        refused = lib.smr_send(self._ring)
        if refused < 0:
            self._check(refused, "sync")
        if refused:
            self._give_back(refused)

    def _give_back(self, count: int) -> None:
        """Queue again what the kernel refused with "try again"; drop what can never be sent."""
        again: dict[RingConnection, list[bytes]] = {}
        for i in range(count):
            slot = self._refused[i]
            connection = self._connections.get(slot.id)
            if connection is None or connection._released:
                continue
            if slot.err == errno.EAGAIN:
                start = lib.smr_buffer(self._ring, slot.buf) + slot.start
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
        """Shut down or close what the application asked to, if its slots are sent."""
        if self._ring.tx_synced != self._ring.tx_head:
            return
        finish, self._after_send = self._after_send, []
        for connection in finish:
            connection._finish()

    # -- the rest --

    def _pause(self, connection: RingConnection) -> None:
        error = lib.smr_pause(self._ring, connection.id, connection._paused)
        if error and error != -errno.ENOENT:  # ENOENT: closed by the peer meanwhile
            self._check(error, "pause")

    @staticmethod
    def _check(error: int, what: str) -> None:
        if error:
            raise OSError(-error, f"{what}: {os.strerror(-error)}")
