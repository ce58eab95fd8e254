"""A port on rings: the kernel's side of it opened and mapped, and its pairs of rings."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from typing import Any

from ._attach_errors import attach_error
from ._connection import PortStats
from ._open_errors import DEVICE, open_error
from ._ring import Ring, RingConnection
from ._ring_c import ffi, lib
from ._ring_listener import RingListener

#: Seconds (SM_MAX_SPIN_US in kmod/pair.c).
_SPIN_MAX = 0.001
_UINT16_MAX, _UINT32_MAX = (1 << 16) - 1, (1 << 32) - 1


def check_nic_name(nic: str) -> None:
    """Refuse what the kernel would cut off or take for another name.

    Raises:
        ValueError: it is empty, or has a NUL in it.
    """
    if not nic or "\0" in nic:
        raise ValueError(f"{nic!r} cannot be the name of a NIC")


class RingPort(Ring):
    """A port on a NIC that ``stackmap bind`` has bound.

    It is its own first pair of rings, which for most programs is all there is.  With several, each
    is for one thread: :attr:`rings` has them, and :meth:`place` and :meth:`place_listener` put
    connections on the one whose thread runs on the CPU that receives their packets.

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
        sizes = ffi.new("struct smr_sizes *", given)
        self._shared: Any = ffi.new("struct smr_port *", {"fd": -1})
        error = lib.smr_open(self._shared, DEVICE.encode(), nic.encode(), sizes)
        if error:
            raise open_error(-error, nic, sizes)
        self._tx_slots: int = sizes.tx_slots
        self._rx_slots: int = sizes.rx_slots
        self._placing = threading.Lock()
        self._listeners: dict[int, RingListener] = {}
        self._nic = nic
        self._final_stats: PortStats | None = None
        # Buffers that are in no slot, and how many kept segments are out with one.
        self._extra: list[int] = []
        self._kept = 0
        self._spare_buffers: int = sizes.spare_buffers
        self._pairs = rings
        try:
            with contextlib.ExitStack() as undo:
                undo.callback(lib.smr_close, self._shared)
                super().__init__(self, 0, spin)
                opened: list[Ring] = [self]
                undo.callback(super().close)
                for index in range(1, rings):
                    opened.append(Ring(self, index, spin))
                    undo.callback(opened[index].close)
                undo.pop_all()
        except OSError as error:
            raise open_error(error.errno or errno.EIO, nic, sizes) from error
        #: All pairs of rings; the first is the port itself.
        self.rings: tuple[Ring, ...] = tuple(opened)
        buffer = self._shared.nifp.ni_bufs_head
        while buffer:
            self._extra.append(buffer)
            buffer = ffi.cast("uint32_t *", lib.smr_buffer(self._pair, buffer))[0]

    def __repr__(self) -> str:
        closed = ", closed" if self._final_stats is not None else ""
        return f"<RingPort on {self._nic}, {len(self.rings)} rings{closed}>"

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
            attached = self._attach(sock, lib.SM_RING_ANY)
            ring = self.rings[attached.ring]
            connection = RingConnection(ring, sock, attached.id, attached.record, announced=True)
            ring._placed.append(connection)
            ring._unsettled = True
        return connection

    def place_listener(self, sock: socket.socket) -> RingListener:
        """Have each connection that is accepted placed on a ring as :meth:`place` does.

        Any thread may call accept(); the connection is its ring's thread's at once.

        Raises:
            OSError: as :meth:`attach_listener`.
        """
        return self._attach_listener(sock, None)

    def close(self) -> None:
        """Close the port, all its rings, and the sockets of its connections.  Idempotent.

        What the rings hold is handed to TCP first; what connections still had queued is dropped.
        Other threads must have left their rings.

        Raises:
            BufferError: a view is still in use elsewhere, or a segment is still kept; unmapping
                would crash its user.
            OSError: ``EBUSY``, a thread is in the :meth:`exchange` of one of the rings.
        """
        if self._final_stats is not None:
            return
        if self._kept:
            raise BufferError(f"{self._kept} kept segments have not been released")
        for listener in [*self._listeners.values()]:
            listener.close()
        for ring in self.rings[1:]:
            ring.close()
        super().close()
        for listener in self._listeners.values():
            listener._end_accepted()
        self._final_stats = self._stats()
        lib.smr_close(self._shared)

    # -- called by the rings --

    def _attach(self, sock: socket.socket, ring: int) -> Any:
        attached = self._hand_over(sock, ring, listener=False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return attached

    def _attach_listener(self, sock: socket.socket, ring: Ring | None) -> RingListener:
        wanted = lib.SM_RING_ANY if ring is None else ring.index
        attached = self._hand_over(sock, wanted, listener=True)
        listener = RingListener(sock, ring or self, attached.id, placed=ring is None)
        self._listeners[attached.id] = listener
        return listener

    def _hand_over(self, sock: socket.socket, ring: int, *, listener: bool) -> Any:
        if self._final_stats is not None:
            raise ValueError("the port is closed")
        attached = ffi.new("struct smr_attached *", {"ring": ring})
        error = lib.smr_attach(self._shared, sock.fileno(), listener, attached)
        if error:
            raise attach_error(-error, listener=listener)
        return attached

    def _accepted_by(self, listener: int, peer: tuple[bytes, bytes]) -> RingConnection | None:
        """The connection from this peer that a listener has accepted; None: not yet."""
        found = self._listeners.get(listener)
        return found._claim(peer) if found else None

    def _stats(self) -> PortStats:
        if self._final_stats is not None:
            return self._final_stats
        st = ffi.new("struct smr_stats *")
        self._check(lib.smr_stats(self._shared, st), "stats")
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
