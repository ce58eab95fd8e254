"""A TCP echo server on epoll, by hand: ``python -m stackmap_testbed.cost.echo_epoll ADDRESS PORT``.

What rings are held to.  It does for a message what cannot be left out, in the cheapest way found
in plain Python (``os.read`` and ``os.write`` cost less than a socket's methods, whatever they are
bound to, and than ``recv_into``; edge triggering gains nothing), and knows nothing of
:mod:`stackmap`.
"""

from __future__ import annotations

import os
import select
import socket
import sys

_CHUNK = 4096
_ACCEPTED_AT_ONCE = 256


def serve(address: str, port_number: int) -> None:
    """Send back what comes, until the process is ended."""
    read, write = os.read, os.write
    connections: dict[int, socket.socket] = {}
    unsent: dict[int, bytes] = {}
    with (
        select.epoll() as epoll,
        socket.create_server((address, port_number), backlog=_ACCEPTED_AT_ONCE) as listener,
    ):
        listening = listener.fileno()
        epoll.register(listening, select.EPOLLIN)
        print("listening", flush=True)
        while True:
            for fd, ready in epoll.poll():
                if fd == listening:
                    sock = listener.accept()[0]
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connections[sock.fileno()] = sock
                    epoll.register(sock, select.EPOLLIN)
                    continue
                try:
                    data = read(fd, _CHUNK) if ready == select.EPOLLIN else unsent.pop(fd, b"")
                except OSError:
                    data = b""
                sent = 0
                try:
                    sent = write(fd, data)
                except BlockingIOError:
                    pass
                except OSError:
                    data = b""
                if not data:
                    connections.pop(fd).close()
                elif sent < len(data):
                    unsent[fd] = data[sent:]
                    epoll.modify(fd, select.EPOLLOUT)
                elif ready != select.EPOLLIN:
                    epoll.modify(fd, select.EPOLLIN)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
