"""Getting TCP to take part of a slot only, so that the module keeps the rest, and ends then."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import TYPE_CHECKING, Protocol

from tests.guest.raw import REFUSED, SYNC_TX
from tests.guest.tcp_info import tcp_info

if TYPE_CHECKING:
    from tests.guest.attached import Attached
    from tests.guest.raw import RawPort

SIOCOUTQ = 0x5411
SLOTS_AT_ONCE = 40


def unacknowledged(sock: socket.socket) -> int:
    """How many bytes TCP has that the peer has not acknowledged, sent or not."""
    count: int = struct.unpack("<i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))[0]
    return count


def peer_is_full(sock: socket.socket) -> bool:
    """Whether all that was sent is acknowledged, and the rest waits for the peer to read."""
    info = tcp_info(sock)
    return info["unacked"] == 0 and info["bytes_notsent"] > 0


def bytes_acked(sock: socket.socket) -> int:
    """How much of what was sent the peer has acknowledged."""
    return tcp_info(sock)["bytes_acked"]


def bytes_in_tcp(sock: socket.socket) -> int:
    """How much of what was sent TCP has, or the peer already."""
    while True:
        acknowledged, rest = bytes_acked(sock), unacknowledged(sock)
        # an ACK between the two would be in neither
        if bytes_acked(sock) == acknowledged:
            return acknowledged + rest


class Sender(Protocol):
    """A connection that is attached to a port, and its peer."""

    port: RawPort
    peer: socket.socket
    sock: socket.socket
    id: int


def leave_a_rest(two: Sender, stream: bytes) -> int:
    """Send on the bad connection until TCP leaves a rest; returns how much was accepted."""
    port = two.port
    two.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    two.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
    accepted = rest = 0
    while not rest:
        # many slots at once share segments, whose ends are not those of slots
        first = port.tx.head
        for k in range(SLOTS_AT_ONCE):
            port.put(first + k, two.id, stream[accepted + 4096 * k : accepted + 4096 * (k + 1)])
        port.tx.set_head((first + SLOTS_AT_ONCE) % port.tx.n)
        port.sync(SYNC_TX)
        took = sum(not port.tx.slot(first + k).events & REFUSED for k in range(SLOTS_AT_ONCE))
        assert took, f"TCP took every slot whole, up to {accepted} bytes"
        accepted += 4096 * took
        rest = accepted - bytes_in_tcp(two.sock)
    assert 0 < rest < 4096
    return accepted


def end_by_shutdown(two: Attached) -> None:
    """Say that nothing more will come; the socket stays attached."""
    two.sock.shutdown(socket.SHUT_WR)


def end_by_detaching(two: Attached) -> None:
    """The same, of an ordinary socket again."""
    two.port.detach(two.id)
    two.sock.shutdown(socket.SHUT_WR)


def end_by_closing(two: Attached) -> None:
    """Close the socket while it is attached."""
    two.sock.close()
