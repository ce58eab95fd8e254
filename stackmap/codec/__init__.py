"""Message parsing and serialisation without I/O: what stands between a connection and a program.

A :class:`Codec` is one connection's end of a protocol.  It imports nothing of the rest of the
package, and runs on any source of bytes.
"""

from ._codec import Buffer, Codec
from ._errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from ._lines import Lines

__all__ = [
    "Buffer",
    "Codec",
    "Lines",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
]
