"""A connection whose payload travels in ring slots."""

from __future__ import annotations

import abc
import contextlib
import socket
from typing import TYPE_CHECKING

from ._connection import Address, Buffer, Connection, Payload
from ._event import Event
from ._fast import LentSegment, Outlet, usual_connection_write, usual_forward
from ._kept import LentKept
from ._port import Port
from ._ring_c import lib

if TYPE_CHECKING:
    from ._tcp_state import TcpState
    from ._transmission import Transmission

#: No record has this number: an accepted connection has none before its first exchange.
_NO_RECORD = 0xFFFFFFFF


class Carrier(Port):
    """The side of a ring that its connections use.

    Attributes:
        index: the number of the ring in its port.
    """

    index: int
    _transmission: Transmission

    @abc.abstractmethod
    def _deliver_later(self, connection: RingConnection) -> None:
        """Have the next exchange deliver what the connection held back."""

    @abc.abstractmethod
    def _stop_connecting(self, connection: RingConnection) -> bool:
        """Give up a connection that Port.connect() has begun; False if it is none."""


class RingConnection(Connection):
    """One TCP connection whose payload travels in ring slots.

    Attributes:
        ring: the :class:`Ring` that carries it.
    """

    __slots__ = (
        "_announced",
        "_deaf",
        "_failed",
        "_held_back",
        "_outlet",
        "_pair",
        "_record",
        "_transmission",
        "ring",
    )

    def __init__(
        self,
        ring: Carrier,
        sock: socket.socket,
        id: int = 0,
        record: int = _NO_RECORD,
        *,
        peername: Address | None = None,
        announced: bool = False,
    ) -> None:
        super().__init__(sock, id, peername)
        # Its ring's thread does not know it, and is told by an OPEN event.
        self._announced = announced
        # It ended by itself, which the application may not have seen yet.
        self._failed = False
        # Slots may not be delivered: it is closing, paused, or has something held back.
        self._deaf = False
        #: Flags, errno and payload of slots that arrived while it was paused.
        self._held_back: list[tuple[int, int, bytes]] = []
        self._place(ring, id, record)
        if not id:
            self._wait_for_name()

    def _place(self, ring: Carrier, id: int, record: int) -> None:
        """Be carried by a ring, under a number of the kernel's."""
        self.ring = ring
        self.id = id
        self._record = record
        self._transmission = ring._transmission
        self._pair = ring._transmission.pair
        self._outlet = Outlet(self._pair.fast, id)

    @usual_connection_write
    def write(self, data: Buffer, report: bool = False) -> None:
        """Send ``data``; see :meth:`Connection.write`."""
        if not self._failed:  # else it is lost, as what was written just before
            super().write(data, report)

    @property
    def bytes_written(self) -> int:
        """See :attr:`Connection.bytes_written`."""
        return self._bytes_written + self._outlet.written

    @usual_forward
    def forward(self, segment: Payload) -> None:
        """Send received bytes on without a copy; see :meth:`Connection.forward`.

        The page that holds the payload goes from the receive ring to the transmit ring.  Payloads
        of up to 2048 bytes, what another port received, and what must wait are copied.

        Raises:
            BufferError: a slice of the segment's view is still in use.
        """
        if (
            isinstance(segment, LentSegment | LentKept)
            and not (self._waiting or self._shutdown)
            and segment.forward(self._outlet)
        ):
            return
        super().forward(segment)

    def tcp_state(self) -> TcpState:
        """Return TCP's state of the connection, without a system call.

        Raises:
            OSError: ``ENOENT``, the kernel has no state of it: it is closed, or so new that it
                has not been part of an exchange yet.
        """
        return self._pair.kernel.tcp_state(self._record, self.id)

    def _wait_for_name(self) -> None:
        """Keep written bytes, and the end, in the queue until the ring has numbered it."""
        self._waiting.append(memoryview(b""))

    # -- required by Connection --

    def _send(self, data: Buffer) -> int:
        taken = self._write_counted(data)
        waiting = len(self._waiting)
        while taken < len(data):
            # The ring is full, or this is a large write.  A sync empties the ring, unless the
            # kernel is short of buffers; it may also give slots of this connection back, and
            # then the rest must wait behind them.
            self._transmission.send_batch()
            if len(self._waiting) > waiting or self._released:
                break
            more = self._write_counted(memoryview(data)[taken:])
            if not more:
                self._transmission.starved[self] = None
                break
            taken += more
        return taken

    def _write_counted(self, data: Buffer) -> int:
        """Put bytes that Connection.write() has counted into slots; returns how many."""
        taken = self._outlet.write(data)
        taken = len(data) if taken is None else taken
        self._outlet.written -= taken
        return taken

    def _send_fin(self) -> None:
        self._transmission.after_send.append(self._finish)

    def _release(self) -> None:
        self._transmission.after_send.append(self._finish)

    def _reset(self) -> None:
        if self.id or self.ring._stop_connecting(self):
            self._close_socket()
        else:
            self._wait_for_name()  # it is named by its peer, which closing would forget

    def _apply_pause(self) -> None:
        self._deaf = self._paused or self._closing or bool(self._held_back)
        if self._held_back and not self._paused:
            self.ring._deliver_later(self)  # and take more from TCP after that
        elif not any(flags & Event.CLOSED for flags, _code, _data in self._held_back):
            self._pair.kernel.pause(self.id, paused=self._paused)

    def _apply_credits(self, more: int | None) -> None:
        if self.id:
            self._pair.kernel.grant(self.id, more)

    def _prepare_report(self) -> None:
        pass  # the slot is asked for it

    def _request_report(self) -> None:
        self._outlet.report()

    def _report_written(self) -> bool:
        return self._outlet.report()

    def _begin_closing(self) -> None:
        super()._begin_closing()
        self._deaf = True
        if self._held_back:
            self.ring._deliver_later(self)  # CLOSED may be among it

    @property
    def unsynced(self) -> int:
        """See :attr:`Connection.unsynced`."""
        slots: int = lib.smr_unsynced(self._pair.struct, self.id)
        return slots

    def _unsent_by_backend(self) -> int:
        slots = self.unsynced
        try:
            return slots + self.tcp_state().bytes_notsent
        except OSError:  # the kernel has no state of it yet, or no more
            return slots

    # -- called by the ring --

    def _finish(self) -> None:
        """Shut down or close, now that the connection's slots have been handed to TCP."""
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
        self._closing = self._shutdown = self._deaf = True
        self._drop_queue()
        self._close_socket()

    def _hold_back(self, flags: int, code: int, data: bytes) -> bool:
        """Keep what arrives for a paused connection; False if it is to be delivered now."""
        if self._closing:
            return False
        if flags & Event.ERROR:
            self._held_back.clear()
            return False
        if flags == Event.CLOSED and not self._held_back:
            return False
        self._held_back.append((flags, code, data))
        return True

    def _close_socket(self) -> None:
        if not self._released:
            if self._sockname is None:
                self.sockname  # noqa: B018 (it is kept)
            self._released = True
            self.sock.close()
