"""Listening sockets whose connections are attached to rings as they are accepted."""

from __future__ import annotations

import collections
import socket
import struct
import threading
from typing import TYPE_CHECKING

from ._port import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._connection import Address
    from ._ring_connection import RingConnection

#: Offset of tcpi_unacked in struct tcp_info; for a listener, the connections in its backlog.
_BACKLOG = struct.Struct("=24xI")

#: The port and the address of a peer, as struct sm_open has them.
Peer = tuple[bytes, bytes]


class RingListener(Listener):
    """A listening socket whose connections are attached from the first byte.

    The kernel names a connection in its ring, with the address of its peer, when accept() returns
    it; the ring joins the two.  What is written to a connection before that exchange waits in its
    queue.

    Args:
        sock: the socket, attached to the port already.
        id: the number under which the kernel names it.
        listeners: the port's listeners by that number, where it enters and removes itself.
        connection: makes a connection without a number of a socket that was accepted, and its
            peer's address.
    """

    def __init__(
        self,
        sock: socket.socket,
        id: int,
        listeners: dict[int, RingListener],
        connection: Callable[[socket.socket, Address], RingConnection],
    ) -> None:
        super().__init__(sock)
        self._id = id
        self._listeners = listeners
        self._connection = connection
        # Connections take TCP_NODELAY after the listener, but for those that are there already.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG.size)
        self._older: int = _BACKLOG.unpack(info)[0]
        self._lock = threading.Lock()
        self._accepted: dict[Peer, collections.deque[RingConnection]] = {}
        listeners[id] = self

    def accept(self) -> RingConnection:
        """Accept one connection; see :meth:`Listener.accept`.

        Raises:
            OSError: as of ``socket.accept``, and ``ENOSPC``: the port has all the connections
                that it may have, and this one stays in the backlog.
        """
        sock, address = self.sock.accept()
        if self._older:
            self._older -= 1
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._connection(sock, address)
        peer = (address[1].to_bytes(2, "big"), _packed(sock.family, address[0]))
        with self._lock:
            self._accepted.setdefault(peer, collections.deque()).append(connection)
            # Another thread may have closed the listener meanwhile.
            self._listeners[self._id] = self
        return connection

    def close(self) -> None:
        """Stop listening.  Connections that were accepted live on.  Idempotent."""
        self.sock.close()
        with self._lock:
            self._forget_if_done()

    def _claim(self, peer: Peer) -> RingConnection | None:
        """The oldest connection accepted from this peer that has not been claimed."""
        with self._lock:
            waiting = self._accepted.get(peer)
            if waiting is None:
                return None
            connection = waiting.popleft()
            if not waiting:
                del self._accepted[peer]
                self._forget_if_done()
            return connection

    def _forget_if_done(self) -> None:
        """Have the port forget the listener if it is closed and all that it accepted is named."""
        if self.sock.fileno() < 0 and not self._accepted:
            self._listeners.pop(self._id, None)

    def _end_accepted(self) -> None:
        """Close the connections that no exchange has named, because none will."""
        with self._lock:
            for waiting in self._accepted.values():
                for connection in waiting:
                    connection._end()
            self._accepted.clear()


def _packed(family: int, host: str) -> bytes:
    """An address as struct sm_open has it: IPv4 in the first four of 16 bytes."""
    return socket.inet_pton(family, host.partition("%")[0]).ljust(16, b"\0")
