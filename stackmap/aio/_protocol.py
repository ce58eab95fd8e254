"""A protocol that is given received payload where it lies, without a copy."""

from __future__ import annotations

import asyncio
from typing import cast

from stackmap import Connection, Event, Segment


class SegmentProtocol(asyncio.Protocol):
    """A protocol that receives segments instead of bytes.

    The loop of this package calls :meth:`segments_received` where it would call
    ``data_received()`` of any other protocol.  On another loop, and on a transport that is not
    attached, each piece of data comes as one segment, whose ``connection`` is None.
    """

    def segments_received(self, segments: list[Segment]) -> None:
        """Take payload that arrived, in order.

        Args:
            segments: one or more, all of this connection.  Each view is valid until this method
                returns; ``Port.keep(segment)`` makes a payload last longer.
        """

    def data_received(self, data: bytes) -> None:
        """Pass data of a transport without segments to :meth:`segments_received`."""
        nobody = cast("Connection", None)
        self.segments_received([Segment(nobody, memoryview(data), Event.NONE, 0)])
