"""A port on rings: the kernel's side of it, and its pairs of rings."""

from __future__ import annotations

import contextlib
import errno
import selectors
import threading
from typing import TYPE_CHECKING, ClassVar

from ._kernel_port import ANY_RING, KernelPort
from ._port import Port, PortStats
from ._ring import Ring
from ._ring_listener import RingListener

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ._connection import Connection, Kept
    from ._fast import Segment
    from ._ring_connection import RingConnection
    from ._watch import HasFileno

#: Seconds (SM_MAX_SPIN_US in kmod/).
_SPIN_MAX = 0.001
_UINT16_MAX, _UINT32_MAX = (1 << 16) - 1, (1 << 32) - 1


def check_nic_name(nic: str) -> None:
    """Refuse what the kernel would cut off or take for another name.

    Raises:
        ValueError: it is empty, or has a NUL in it.
    """
    if not nic or "\0" in nic:
        raise ValueError(f"{nic!r} cannot be the name of a NIC")


class RingPort(Port):
    """A port on a NIC that ``stackmap bind`` has bound.

    It has one pair of rings or several, each for one thread, in :attr:`rings`.  The methods of
    :class:`Port` are those of the first, which for most programs is all there is.  :meth:`place`
    and :meth:`place_listener` put connections on the ring whose thread runs on the CPU that
    receives their packets.

    Memory is charged to the memory cgroup of the caller: 4096 bytes for each slot of each ring
    and for each spare and extra buffer.

    Args:
        nic: the NIC's name.
        rings: pairs of rings, 1 to 64.
        tx_slots: size of each transmit ring, 4 to 16384.
        rx_slots: size of each receive ring, 4 to 16384.
        spare_buffers: how many buffers can be pinned, waiting for acknowledgements; by default
            four for each transmit slot.
        connections: how many can be attached at a time; by default 16384.
        extra_buffers: how many received segments :meth:`keep` may keep without a copy.
        spin: seconds for which an exchange that finds nothing polls the NIC before it returns or
            sleeps, at most 0.001.

    Raises:
        BackendUnavailableError: no module, no right, the NIC is not bound, or a limit was hit.
        ValueError: ``spin`` or a size is out of range, or ``nic`` cannot be the name of a NIC.
    """

    backend: ClassVar[str] = "stackmap"

    def __init__(
        self,
        nic: str,
        *,
        rings: int = 1,
        tx_slots: int = 1024,
        rx_slots: int = 1024,
        spare_buffers: int | None = None,
        connections: int | None = None,
        extra_buffers: int = 0,
        spin: float = 0.0,
    ) -> None:
        check_nic_name(nic)
        if not 0 <= spin <= _SPIN_MAX:  # the kernel would refuse each exchange
            raise ValueError(f"spin must be 0 to {_SPIN_MAX} seconds, not {spin}")
        asked = {
            "rings": rings,
            "tx_slots": tx_slots,
            "rx_slots": rx_slots,
            "spare_buffers": spare_buffers,
            "connections": connections,
            "extra_buffers": extra_buffers,
        }
        given = {name: number for name, number in asked.items() if number is not None}
        for name, number in given.items():  # which of these are too much, the kernel says itself
            # The kernel would take 0 for "the default", but for extra buffers.
            least = 0 if name == "extra_buffers" else 1
            if not least <= number <= (_UINT16_MAX if name == "rings" else _UINT32_MAX):
                raise ValueError(f"{name} must be a size from {least} on, not {number}")
        self._nic = nic
        self._kernel = KernelPort(nic, given)
        self._listeners: dict[int, RingListener] = {}
        self._placing = threading.Lock()
        opened: list[Ring] = []
        try:
            with contextlib.ExitStack() as undo:
                undo.callback(self._kernel.close)
                for index in range(rings):
                    opened.append(
                        Ring(
                            self._kernel,
                            index,
                            listeners=self._listeners,
                            placing=self._placing,
                            spin=spin,
                        )
                    )
                    undo.callback(opened[index].close)
                undo.pop_all()
        except OSError as error:
            raise self._kernel.open_error(error.errno or errno.EIO) from error
        #: All pairs of rings.
        self.rings: tuple[Ring, ...] = tuple(opened)
        self._first = opened[0]
        self._kernel.extra_buffers += self._first.take_extra_buffers()

    def __repr__(self) -> str:
        closed = ", closed" if self._kernel.closed else ""
        return f"<RingPort on {self._nic}, {len(self.rings)} rings{closed}>"

    # -- of the first ring --

    def fileno(self) -> int:
        """A descriptor of the first ring, for other loops; see :meth:`Port.fileno`."""
        return self._first.fileno()

    def attach(self, sock: socket.socket) -> RingConnection:
        """Take over the payload of a connection, on the first ring; see :meth:`Ring.attach`."""
        return self._first.attach(sock)

    def attach_listener(self, sock: socket.socket) -> RingListener:
        """Attach what a socket accepts to the first ring; see :meth:`Ring.attach_listener`."""
        return self._first.attach_listener(sock)

    def connect(self, address: tuple[str, int]) -> RingConnection:
        """Begin to connect, for the first ring; see :meth:`Port.connect`."""
        return self._first.connect(address)

    def detach(self, connection: Connection) -> None:
        """Make a socket of the first ring an ordinary one again; see :meth:`Port.detach`."""
        self._first.detach(connection)

    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        """Send and receive on the first ring; see :meth:`Port.exchange`."""
        return self._first.exchange(timeout)

    def flush(self) -> None:
        """Send everything written on the first ring; see :meth:`Port.flush`."""
        self._first.flush()

    def flush_from_outside(self) -> None:
        """Send everything written on the first ring; see :meth:`Port.flush_from_outside`."""
        self._first.flush_from_outside()

    def wakeup(self) -> None:
        """End the wait of the first ring's exchange; see :meth:`Port.wakeup`."""
        self._first.wakeup()

    def keep(self, segment: Segment, *, copy: bool = True) -> Kept:
        """Have a payload stay valid beyond the next exchange; see :meth:`Ring.keep`."""
        return self._first.keep(segment, copy=copy)

    def watch(
        self,
        file: HasFileno | int,
        callback: Callable[[], object],
        events: int = selectors.EVENT_READ,
    ) -> None:
        """Call ``callback`` whenever ``file`` is ready; see :meth:`Port.watch`."""
        self._first.watch(file, callback, events)

    def unwatch(self, file: HasFileno | int) -> None:
        """Stop watching ``file``; see :meth:`Port.unwatch`."""
        self._first.unwatch(file)

    # -- of all rings --

    @property
    def connections(self) -> list[Connection]:
        """The connections of all rings that are not closed; see :meth:`Port.connections`."""
        return [connection for ring in self.rings for connection in ring.connections]

    @property
    def closed(self) -> bool:
        """The port is closed."""
        return self._kernel.closed

    def place(self, sock: socket.socket) -> RingConnection:
        """Attach a connection to the ring whose thread runs on the CPU that receives its packets.

        A thread is taken to run where its last exchange did.  Among several on that CPU, and where
        there is none, the one with the fewest connections gets it.

        The connection is at once that ring's thread's: this one must not use it any more.  There,
        an ``Event.OPEN`` segment comes ahead of all others of the connection.

        Raises:
            OSError: as :meth:`attach`.
        """
        with self._placing:
            attached = self._kernel.attach(sock, ANY_RING)
            ring: Ring = self.rings[attached.ring]
            return ring._place(sock, attached.id, attached.record)

    def place_listener(self, sock: socket.socket) -> RingListener:
        """Have each connection that is accepted placed on a ring as :meth:`place` does.

        Any thread may call accept(); the connection is its ring's thread's at once.

        Raises:
            OSError: as :meth:`attach_listener`.
        """
        attached = self._kernel.attach(sock, ANY_RING, listener=True)
        return RingListener(
            sock, attached.id, self._listeners, self._first._connection_of_another_thread
        )

    def stats(self) -> PortStats:
        """The kernel's counters since the port was opened, of all its rings."""
        return self._kernel.stats()

    def close(self) -> None:
        """Close the port, all its rings, and the sockets of its connections.  Idempotent.

        What the rings hold is handed to TCP first; what connections still had queued is dropped.
        Other threads must have left their rings.

        Raises:
            BufferError: a view is still in use elsewhere, or a segment is still kept; unmapping
                would crash its user.
            OSError: ``EBUSY``, a thread is in the :meth:`exchange` of one of the rings.
        """
        if self._kernel.closed:
            return
        if self._kernel.kept:
            raise BufferError(f"{self._kernel.kept} kept segments have not been released")
        for listener in [*self._listeners.values()]:
            listener.close()
        for ring in reversed(self.rings):
            ring.close()
        for listener in self._listeners.values():
            listener._end_accepted()
        self._kernel.close()
