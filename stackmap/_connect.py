"""Begin to connect without blocking."""

from __future__ import annotations

import errno
import socket

from ._connection import Address


def start_connecting(address: tuple[str, int]) -> tuple[socket.socket, Address, int]:
    """Begin to connect a socket of its own; returns it, the peer's address, and an errno or 0.

    Raises:
        ValueError: the host is not an IP address.
    """
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror as failure:
        raise ValueError(f"{host!r} is not an IP address: resolve it first") from failure
    family, kind, protocol, _name, peername = found[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    code = sock.connect_ex(peername)
    return sock, peername, 0 if code == errno.EINPROGRESS else code
