"""Message parsing and serialisation without I/O: what stands between a connection and a program.

A :class:`Codec` is one connection's end of a protocol.  It imports nothing of the rest of the
package, and runs on any source of bytes.  ``stackmap.codec.http1`` and ``stackmap.codec.memcached``
are modules of their own.
"""

from ._buffered import Buffered
from ._codec import Buffer, Codec
from ._errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from ._factory import check_codec_factory
from ._fixed import Fixed
from ._frames import LengthPrefixed
from ._lines import Lines
from ._msgspec_frames import MsgspecFrames

__all__ = [
    "Buffer",
    "Buffered",
    "Codec",
    "Fixed",
    "LengthPrefixed",
    "Lines",
    "LocalProtocolError",
    "MsgspecFrames",
    "ProtocolError",
    "RemoteProtocolError",
    "check_codec_factory",
]
