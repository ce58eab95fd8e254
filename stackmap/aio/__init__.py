"""asyncio on rings: an event loop whose TCP connections are carried by a port.

Run a program with :func:`run`, or give :class:`EventLoop` or :func:`loop_factory` to whatever takes
a ``loop_factory``.  See ``docs/asyncio.md``.
"""

from ._loop import EventLoop, LoopStats, loop_factory, run
from ._protocol import SegmentProtocol
from ._transport import PortTransport, acknowledged

__all__ = [
    "EventLoop",
    "LoopStats",
    "PortTransport",
    "SegmentProtocol",
    "acknowledged",
    "loop_factory",
    "run",
]
