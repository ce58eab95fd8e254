"""The kernel's side of a port: opened, mapped, and asked about its connections."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from ._attach_errors import attach_error
from ._device import DEVICE
from ._open_errors import open_error
from ._port import PortStats
from ._ring_c import ffi, lib
from ._tcp_state import TcpState
from .errors import BusyError, make_error, port_closed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .errors import BackendUnavailableError

#: The ring to attach to, for the kernel to choose.
ANY_RING: int = lib.SM_RING_ANY


def check(error: int, action: str) -> None:
    """Raise the OSError for what a function of ``_ring.c`` returned, if that is an error."""
    if error:
        kind = BusyError if error == -errno.EBUSY else OSError
        raise make_error(kind, -error, f"{action}: {os.strerror(-error)}")


class KernelPort:
    """A port of the kernel module: the memory and the connections that its rings share.

    Attributes:
        shared: its ``struct smr_port``.
        rings, tx_slots, rx_slots, spare_buffers: the sizes that it has.
        extra_buffers: numbers of the buffers that are in no slot.
        kept: how many kept segments are out, each with a buffer instead of an extra one.

    Raises:
        BackendUnavailableError: it cannot be opened.
    """

    def __init__(self, nic: str, sizes: Mapping[str, int]) -> None:
        self._nic = nic
        self._sizes: Any = ffi.new("struct smr_sizes *", sizes)
        self.shared: Any = ffi.new("struct smr_port *", {"fd": -1})
        error = lib.smr_open(self.shared, DEVICE.encode(), nic.encode(), self._sizes)
        if error:
            raise self.open_error(-error)
        self.rings: int = self._sizes.rings
        self.tx_slots: int = self._sizes.tx_slots
        self.rx_slots: int = self._sizes.rx_slots
        self.spare_buffers: int = self._sizes.spare_buffers
        self.extra_buffers: list[int] = []
        self.kept = 0
        self._final_stats: PortStats | None = None

    @property
    def closed(self) -> bool:
        """It is closed: only its counters are left."""
        return self._final_stats is not None

    def open_error(self, code: int) -> BackendUnavailableError:
        """Return the exception for the errno with which opening failed, or mapping."""
        return open_error(code, self._nic, self._sizes)

    def close(self) -> None:
        """Unmap and close it; its rings are closed already."""
        self._final_stats = self.stats()
        lib.smr_close(self.shared)

    def attach(self, sock: socket.socket, ring: int, *, listener: bool = False) -> Any:
        """Attach a socket to a ring; returns a ``struct smr_attached``.

        Raises:
            OSError: it cannot be attached.
            ClosedError: the port is closed.
        """
        if self.closed:
            raise port_closed()
        attached = ffi.new("struct smr_attached *", {"ring": ring})
        error = lib.smr_attach(self.shared, sock.fileno(), listener, attached)
        if error:
            raise attach_error(-error, listener=listener)
        if not listener:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return attached

    def detach(self, id: int) -> None:
        """Make the socket of a connection an ordinary one again."""
        check(lib.smr_detach(self.shared, id), "detach")

    def pause(self, id: int, *, paused: bool) -> None:
        """Take no more data of a connection from TCP, or take it again."""
        error = lib.smr_pause(self.shared, id, paused)
        if error != -errno.ENOENT:  # closed by the peer meanwhile
            check(error, "pause")

    def grant(self, id: int, segments: int | None) -> None:
        """Let a connection put so many more slots of data into its ring; None: any number."""
        slots = lib.SMR_UNLIMITED if segments is None else min(segments, lib.SMR_UNLIMITED - 1)
        error = lib.smr_grant(self.shared, id, slots)
        if error != -errno.ENOENT:  # closed by the peer meanwhile
            check(error, "grant")

    def tcp_state(self, record: int, id: int) -> TcpState:
        """Return TCP's state of a connection.

        Raises:
            OSError: ``ENOENT``, the kernel has none of it.
        """
        state = ffi.new("struct sm_state *")
        check(lib.smr_state(self.shared, record, id, state), "state")
        return TcpState(*[getattr(state, name) for name in TcpState._fields])

    def stats(self) -> PortStats:
        """The kernel's counters, of all rings."""
        if self._final_stats is not None:
            return self._final_stats
        st = ffi.new("struct smr_stats *")
        check(lib.smr_stats(self.shared, st), "stats")
        return PortStats(
            rx_bytes=st.rx_bytes,
            tx_bytes=st.tx_bytes,
            slots_sent=st.slots_sent,
            slots_released_ack=st.slots_released_ack,
            slots_released_reset=st.slots_released_reset,
            bufs_pinned=st.slots_pinned,
            bad_slots=st.bad_slots,
            unknown_conn=st.unknown_conn,
            slots_again=st.slots_again,
            direct_packets=st.direct_packets,
            direct_received=st.direct_received,
            bad_rings=st.bad_rings,
        )
