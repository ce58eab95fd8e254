"""Close connections with RST."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from asyncio.trsock import TransportSocket

#: A ``struct linger`` that is on, with a timeout of 0; see socket(7).
_LINGER_0 = struct.pack("ii", 1, 0)


def reset_on_close(sock: socket.socket | TransportSocket) -> None:
    """Have the socket's close send RST and drop what is queued.  A closed socket is left alone."""
    with contextlib.suppress(OSError, ValueError):  # the latter is uvloop's
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)


def reset_transport(transport: asyncio.WriteTransport) -> None:
    """Abort an asyncio transport with RST.

    ``abort()`` alone sends FIN if the client's input was read, and the client may take half a
    reply for a whole one.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None:
        reset_on_close(sock)
    transport.abort()
