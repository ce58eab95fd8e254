"""An application that sends on many connections in one sync: ``batches PORT CONNECTIONS BYTES``.

For each line of its standard input it sends once on all of them.
"""

from __future__ import annotations

import socket
import sys

from stackmap import open_port


def serve(port_number: int, connections: int, size: int) -> None:
    """Accept so many connections, and send that many bytes on each for each line."""
    payload = bytes(range(256)) * (size // 256 + 1)
    with (
        open_port("stackmap") as port,
        socket.create_server(("", port_number), backlog=connections) as listener,
    ):
        print("listening", flush=True)
        attached = [port.attach(listener.accept()[0]) for _ in range(connections)]
        print("attached", flush=True)
        for _line in sys.stdin:
            for connection in attached:
                connection.write(payload[:size])
            port.flush()
            print("sent", flush=True)


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
