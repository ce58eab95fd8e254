"""Tools for tests of programs on asyncio: time that a test controls, and transports in memory.

And checks of conformance, for those who write a transport or a port of their own.  They import
nothing of the rest of the package, and serve any protocol of asyncio's.
"""

from ._clock import NothingToDoError, VirtualClock
from ._errors import ConformanceError
from ._memory import MemoryTransport, memory_pair
from ._transport_checks import TRANSPORT_CHECKS, check_transport

__all__ = [
    "TRANSPORT_CHECKS",
    "ConformanceError",
    "MemoryTransport",
    "NothingToDoError",
    "VirtualClock",
    "check_transport",
    "memory_pair",
]
