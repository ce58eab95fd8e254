"""A TCP echo server on rings: ``python -m stackmap_testbed.cost.echo_rings ADDRESS PORT NIC``."""

from __future__ import annotations

import socket
import sys

from stackmap import Event, open_port


def serve(address: str, port_number: int, nic: str) -> None:
    """Send back what comes, until the process is ended."""
    with (
        open_port("stackmap", nic) as port,
        socket.create_server((address, port_number), backlog=4096) as listener,
    ):

        def accept() -> None:
            port.attach(listener.accept()[0])

        port.watch(listener, accept)
        print("listening", flush=True)
        while True:
            for segment in port.exchange(timeout=None):
                if not segment.event:
                    segment.connection.forward(segment)
                elif segment.event & (Event.EOF | Event.ERROR):
                    segment.connection.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
