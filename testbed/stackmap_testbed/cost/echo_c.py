"""TCP echo servers in C: ``python -m stackmap_testbed.cost.echo_c ADDRESS PORT [NIC]``.

On rings if a NIC is named, otherwise on epoll.  They show the cost of a request without Python.
"""

from __future__ import annotations

import os
import socket
import sys

from stackmap import DEVICE
from stackmap_testbed.cost._echo_c import lib


def serve(address: str, port: int, nic: str | None) -> None:
    """Send back what comes, until the process is ended.

    Raises:
        OSError: it cannot listen, open a port on rings, or go on.
    """
    with socket.create_server((address, port), backlog=4096) as listener:
        print("listening", flush=True)
        if nic is None:
            error = lib.echo_on_epoll(listener.fileno())
        else:
            error = lib.echo_on_rings(listener.fileno(), DEVICE.encode(), nic.encode())
    raise OSError(-error, os.strerror(-error))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
