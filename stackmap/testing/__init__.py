"""Tools for tests of programs on asyncio: time that a test controls, and transports in memory.

And checks of conformance, for those who write a stream, a transport or a port of their own.  The
former serve any protocol of asyncio's.
"""

from ._clock import NothingToDoError, VirtualClock
from ._errors import ConformanceError
from ._memory import MemoryTransport, memory_pair
from ._port_checks import PORT_CHECKS, check_port
from ._stream_checks import STREAM_CHECKS, check_stream
from ._stream_like import ReaderLike, WriterLike
from ._transport_checks import TRANSPORT_CHECKS, check_transport

__all__ = [
    "PORT_CHECKS",
    "STREAM_CHECKS",
    "TRANSPORT_CHECKS",
    "ConformanceError",
    "MemoryTransport",
    "NothingToDoError",
    "ReaderLike",
    "VirtualClock",
    "WriterLike",
    "check_port",
    "check_stream",
    "check_transport",
    "memory_pair",
]
