"""End a connection with a reset."""

from __future__ import annotations

import socket
import struct

_ON_WITHOUT_LINGERING = struct.pack("ii", 1, 0)


def reset_on_close(sock: socket.socket) -> None:
    """Have the socket's close reset its connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ON_WITHOUT_LINGERING)
