"""Read the module's ports, rings and connections over generic netlink, and which NICs are bound.

``kmod/stackmap.yaml`` specifies the messages, and says why no privilege is needed.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket, GenericNetlinkSocket

from ._device import DEVICE
from ._nics import QDISC_KIND, BoundNic, Grants, bound_nics, root_qdiscs
from .errors import StackmapError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "QDISC_KIND",
    "BoundNic",
    "ConnectionInfo",
    "Counters",
    "Grants",
    "Inspector",
    "NotLoadedError",
    "PortInfo",
    "RingInfo",
    "bound_nics",
    "root_qdiscs",
]

FAMILY = "stackmap"
PORT_GET, RING_GET, CONN_GET = 1, 2, 3
PAUSED, BLOCKED, LEAVING = 1, 2, 4

#: TCP's states by the kernel's numbers, in the words of ``ss``.
STATES = {
    1: "ESTAB",
    2: "SYN-SENT",
    3: "SYN-RECV",
    4: "FIN-WAIT-1",
    5: "FIN-WAIT-2",
    6: "TIME-WAIT",
    7: "CLOSED",
    8: "CLOSE-WAIT",
    9: "LAST-ACK",
    10: "LISTEN",
    11: "CLOSING",
}


class NotLoadedError(StackmapError):
    """The kernel module is not loaded."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Counted since the port was opened, but for ``connections``, which is the present number."""

    rx_bytes: int
    tx_bytes: int
    rx_slots: int
    slots_sent: int
    slots_released_ack: int
    slots_released_reset: int
    slots_again: int
    bad_slots: int
    unknown_conn: int
    dead_conn: int
    bad_rings: int
    ring_stalls: int
    syncs: int
    direct_packets: int
    direct_received: int
    connections: int


@dataclass(frozen=True, slots=True)
class PortInfo:
    """An open port."""

    mem_id: int
    name: str
    #: The NIC's index; None while it is not bound.
    ifindex: int | None
    pid: int
    uid: int
    rings: int
    tx_slots: int
    rx_slots: int
    bufs: int
    bufs_free: int
    bufs_pinned: int
    connections_max: int
    counters: Counters


@dataclass(frozen=True, slots=True)
class RingInfo:
    """A pair of rings of a port."""

    mem_id: int
    index: int
    #: Where the application synced last; None if it never did.
    cpu: int | None
    rx_filled: int
    tx_stalled: bool
    counters: Counters


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """An attached connection."""

    mem_id: int
    id: int
    ring: int
    inode: int
    state: str
    #: Addresses as ``inet_ntop()`` writes them.
    local: str
    local_port: int
    peer: str
    peer_port: int
    bufs_pinned: int
    bytes_pinned: int
    rest: int
    paused: bool
    blocked: bool
    leaving: bool


class CountersNest(nla):
    """The attribute set ``counters``."""

    prefix = "SM_A_COUNTERS_"
    nla_map = (
        ("SM_A_COUNTERS_UNSPEC", "none"),
        ("SM_A_COUNTERS_PAD", "none"),
        ("SM_A_COUNTERS_RX_BYTES", "uint64"),
        ("SM_A_COUNTERS_TX_BYTES", "uint64"),
        ("SM_A_COUNTERS_RX_SLOTS", "uint64"),
        ("SM_A_COUNTERS_SLOTS_SENT", "uint64"),
        ("SM_A_COUNTERS_SLOTS_RELEASED_ACK", "uint64"),
        ("SM_A_COUNTERS_SLOTS_RELEASED_RESET", "uint64"),
        ("SM_A_COUNTERS_SLOTS_AGAIN", "uint64"),
        ("SM_A_COUNTERS_BAD_SLOTS", "uint64"),
        ("SM_A_COUNTERS_UNKNOWN_CONN", "uint64"),
        ("SM_A_COUNTERS_DEAD_CONN", "uint64"),
        ("SM_A_COUNTERS_BAD_RINGS", "uint64"),
        ("SM_A_COUNTERS_RING_STALLS", "uint64"),
        ("SM_A_COUNTERS_SYNCS", "uint64"),
        ("SM_A_COUNTERS_DIRECT_PACKETS", "uint64"),
        ("SM_A_COUNTERS_DIRECT_RECEIVED", "uint64"),
        ("SM_A_COUNTERS_CONNECTIONS", "uint64"),
    )


class PortMessage(genlmsg):
    """The attribute set ``port``."""

    prefix = "SM_A_PORT_"
    counters = CountersNest
    nla_map = (
        ("SM_A_PORT_UNSPEC", "none"),
        ("SM_A_PORT_MEM_ID", "uint32"),
        ("SM_A_PORT_NAME", "asciiz"),
        ("SM_A_PORT_IFINDEX", "uint32"),
        ("SM_A_PORT_PID", "uint32"),
        ("SM_A_PORT_UID", "uint32"),
        ("SM_A_PORT_RINGS", "uint32"),
        ("SM_A_PORT_TX_SLOTS", "uint32"),
        ("SM_A_PORT_RX_SLOTS", "uint32"),
        ("SM_A_PORT_BUFS", "uint32"),
        ("SM_A_PORT_BUFS_FREE", "uint32"),
        ("SM_A_PORT_BUFS_PINNED", "uint32"),
        ("SM_A_PORT_CONNECTIONS_MAX", "uint32"),
        ("SM_A_PORT_COUNTERS", "counters"),
    )


class RingMessage(genlmsg):
    """The attribute set ``ring``."""

    prefix = "SM_A_RING_"
    counters = CountersNest
    nla_map = (
        ("SM_A_RING_UNSPEC", "none"),
        ("SM_A_RING_MEM_ID", "uint32"),
        ("SM_A_RING_INDEX", "uint32"),
        ("SM_A_RING_CPU", "uint32"),
        ("SM_A_RING_RX_FILLED", "uint32"),
        ("SM_A_RING_TX_STALLED", "flag"),
        ("SM_A_RING_COUNTERS", "counters"),
    )


class ConnMessage(genlmsg):
    """The attribute set ``conn``."""

    prefix = "SM_A_CONN_"
    nla_map = (
        ("SM_A_CONN_UNSPEC", "none"),
        ("SM_A_CONN_MEM_ID", "uint32"),
        ("SM_A_CONN_ID", "uint32"),
        ("SM_A_CONN_RING", "uint32"),
        ("SM_A_CONN_INODE", "uint32"),
        ("SM_A_CONN_FAMILY", "uint16"),
        ("SM_A_CONN_STATE", "uint8"),
        ("SM_A_CONN_LOCAL_ADDR", "cdata"),
        ("SM_A_CONN_LOCAL_PORT", "be16"),
        ("SM_A_CONN_PEER_ADDR", "cdata"),
        ("SM_A_CONN_PEER_PORT", "be16"),
        ("SM_A_CONN_BUFS_PINNED", "uint32"),
        ("SM_A_CONN_BYTES_PINNED", "uint32"),
        ("SM_A_CONN_REST", "uint32"),
        ("SM_A_CONN_FLAGS", "uint32"),
    )


#: Which message answers which command.
ANSWERS: dict[int, type[genlmsg]] = {
    PORT_GET: PortMessage,
    RING_GET: RingMessage,
    CONN_GET: ConnMessage,
}


class _AsyncSocket(AsyncGenericNetlinkSocket):
    # The exception says it; pyroute2 need not write it on stderr too.
    module_err_level = "debug"


class Inspector(GenericNetlinkSocket):
    """Asks the module, in the network namespace it is made in.  Close it, or use it in ``with``.

    Raises:
        NotLoadedError: there is no module to ask.
    """

    async_class = _AsyncSocket

    def __init__(self) -> None:
        super().__init__()
        try:
            self.bind(FAMILY, genlmsg)
        except NetlinkError as error:
            self.close()
            if error.code != errno.ENOENT:
                raise
            raise NotLoadedError(
                "the kernel module that is loaded is another than this program's: "
                "unbind all NICs, run `rmmod stackmap`, and bind them again"
                if os.path.exists(DEVICE)  # noqa: PTH110
                else "the kernel module is not loaded: `stackmap bind NIC` loads it"
            ) from None

    def __enter__(self) -> Self:
        return self

    def ports(self) -> list[PortInfo]:
        """The open ports of this network namespace."""
        return [_port(message) for message in self._dump(PORT_GET)]

    def rings(self) -> list[RingInfo]:
        """All rings of all ports."""
        return [_ring(message) for message in self._dump(RING_GET)]

    def connections(self) -> list[ConnectionInfo]:
        """All connections of all ports."""
        return [_connection(message) for message in self._dump(CONN_GET)]

    def _dump(self, command: int) -> Iterator[Any]:
        self.asyncore.marshal.msg_map[self.prid] = ANSWERS[command]
        request = genlmsg()
        request["cmd"] = command
        request["version"] = 1
        yield from self.nlm_request(
            request, msg_type=self.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
        )


def _values(message: Any) -> dict[str, Any]:
    """Attributes by the names they have in the specification, with ``_`` for ``-``."""
    prefix = message.prefix
    return {name.removeprefix(prefix).lower(): value for name, value in message["attrs"]}


def _counters(nest: Any) -> Counters:
    values = _values(nest)
    return Counters(**{name: values[name] for name in Counters.__slots__})


def _port(message: Any) -> PortInfo:
    values = {"ifindex": None} | _values(message)
    return PortInfo(**values | {"counters": _counters(values["counters"])})


def _ring(message: Any) -> RingInfo:
    values = {"cpu": None, "tx_stalled": False} | _values(message)
    return RingInfo(**values | {"counters": _counters(values["counters"])})


def _connection(message: Any) -> ConnectionInfo:
    values = _values(message)
    flags = values.pop("flags")
    family = values.pop("family")
    return ConnectionInfo(
        **values
        | {
            "state": STATES[values["state"]],
            "local": socket.inet_ntop(family, values.pop("local_addr")),
            "peer": socket.inet_ntop(family, values.pop("peer_addr")),
            "paused": bool(flags & PAUSED),
            "blocked": bool(flags & BLOCKED),
            "leaving": bool(flags & LEAVING),
        }
    )
