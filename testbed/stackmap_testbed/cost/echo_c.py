"""TCP echo servers in C: ``python -m stackmap_testbed.cost.echo_c ADDRESS PORT [NIC]``.

On rings if a NIC is named, otherwise on epoll, which polls the NIC busily for the microseconds of
``--busy``.  They show the cost of a request without Python.
"""

from __future__ import annotations

import argparse
import os
import socket

from stackmap import DEVICE
from stackmap_testbed.cost._echo_c import lib


def serve(address: str, port: int, nic: str | None, busy_usecs: int) -> None:
    """Send back what comes, until the process is ended.

    Raises:
        OSError: it cannot listen, open a port on rings, or go on.
    """
    with socket.create_server((address, port), backlog=4096) as listener:
        print("listening", flush=True)
        if nic is None:
            error = lib.echo_on_epoll(listener.fileno(), busy_usecs)
        else:
            error = lib.echo_on_rings(listener.fileno(), DEVICE.encode(), nic.encode())
    raise OSError(-error, os.strerror(-error))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("nic", nargs="?")
    parser.add_argument("--busy", type=int, default=0, metavar="MICROSECONDS")
    args = parser.parse_args()
    serve(args.address, args.port, args.nic, args.busy)
