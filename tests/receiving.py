"""Receive from a socket until all that is expected is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes: MSG_WAITALL does not wait for them on a socket that has a timeout."""
    got = bytearray()
    while len(got) < size:
        more = sock.recv(min(1 << 20, size - len(got)))
        assert more, f"the end after {len(got)} bytes of {size}: {bytes(got[-100:])!r}"
        got += more
    return bytes(got)
