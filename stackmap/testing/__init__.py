"""Tools for tests of programs on asyncio: time that a test controls, and transports in memory.

They import nothing of the rest of the package, and serve any protocol of asyncio's.
"""

from ._clock import NothingToDoError, VirtualClock
from ._memory import MemoryTransport, memory_pair

__all__ = ["MemoryTransport", "NothingToDoError", "VirtualClock", "memory_pair"]
