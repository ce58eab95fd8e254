"""Connections that a ring reports before accept() has returned them."""

from __future__ import annotations

import math
import struct
import time
from typing import TYPE_CHECKING

from ._event import Event

if TYPE_CHECKING:
    from ._ring_listener import Peer

#: Seconds for which a connection that has ended waits for accept() to return it in another thread.
_ABANDONED_AFTER = 10.0
#: listener, record, family, port and address of a struct sm_open
_OPENED = struct.Struct("=IIH2s16s")


class Unclaimed:
    """A connection, and its slots, that the ring reports before accept() has returned it.

    Attributes:
        listener: the number of the listener that accepts it.
        record: where the kernel keeps TCP's state of it.
        peer: the address of its peer.
        held: it is paused, until accept() returns it.
        slots: flags, errno and payload of what arrived for it.
    """

    __slots__ = ("_abandoned_at", "held", "listener", "peer", "record", "slots")

    def __init__(self, opened: bytes) -> None:
        self.listener: int
        self.record: int
        self.listener, self.record, _family, port, address = _OPENED.unpack(opened)
        self.peer: Peer = (port, address)
        self.held = False
        self._abandoned_at = math.inf
        self.slots: list[tuple[int, int, bytes]] = []

    @property
    def abandoned(self) -> bool:
        """Whether it ended so long ago that nobody will claim it."""
        return time.monotonic() > self._abandoned_at

    def queue(self, flags: int, code: int, data: bytes) -> None:
        """Keep a slot that arrived for it."""
        self.slots.append((flags, code, data))
        if flags & Event.CLOSED:
            self._abandoned_at = time.monotonic() + _ABANDONED_AFTER
