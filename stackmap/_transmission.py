"""The transmit side of a ring: slots handed to TCP, and what the kernel refuses queued again."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ._kernel_port import check
from ._ring_c import lib
from .errors import port_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._connection import Connection
    from ._pair import Pair


class Transmission:
    """Hands the slots of a ring's connections to TCP, in the order in which they were written.

    Attributes:
        pair: the rings.
        after_send: what to do once all slots are handed to TCP: send a FIN, close.
        starved: connections that found the ring full, in order.
    """

    def __init__(self, pair: Pair, connections: Mapping[int, Connection]) -> None:
        self.pair = pair
        self._connections = connections
        self.after_send: list[Callable[[], None]] = []
        self.starved: dict[Connection, None] = {}
        self._send = lib.smr_send
        self._closed = False

    def send_batch(self) -> None:
        """Hand written bytes to TCP now, in the middle of a batch.

        Raises:
            ClosedError: the port is closed.
        """
        if self._closed:
            raise port_closed()
        refused = self._send(self.pair.struct)
        if refused < 0:
            check(refused, "sync")
        if refused:
            self.requeue_refused(refused)

    def requeue_refused(self, count: int) -> None:
        """Queue slots again that were refused with EAGAIN; drop those that can never be sent."""
        again: dict[Connection, list[bytes]] = {}
        for id, code, payload in self.pair.refused(count):
            connection = self._connections.get(id)
            if connection is None or connection._released:
                continue
            if code == errno.EAGAIN:
                again.setdefault(connection, []).append(payload)
            else:
                connection._failure = code
                connection._dropped = True
                connection._drop_queue()
        for connection, parts in again.items():
            for part in reversed(parts):
                connection._requeue(part)

    def finish_sent(self) -> None:
        """Shut down or close connections as asked for, once their slots are sent."""
        if self.pair.all_synced:
            finish = self.after_send[:]
            self.after_send.clear()
            for action in finish:
                action()

    def take_starved(self) -> list[Connection]:
        """Take the connections that found the ring full, and still have something to send."""
        starved = list(self.starved)
        self.starved.clear()
        return [
            connection for connection in starved if connection._waiting and not connection._released
        ]

    def begin_closing(self) -> None:
        """The caller has entered the pair, to close it: send without entering it."""
        self._send = lib.smr_send_entered

    def close(self) -> None:
        """Drop what is not sent."""
        self._closed = True
        self.after_send.clear()
        self.starved.clear()
