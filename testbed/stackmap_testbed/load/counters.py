"""The counters that the project's memcached server reports of its port (``stats stackmap``)."""

from __future__ import annotations

import socket

from stackmap_testbed.waiting import wait_until

_PREFIX = "stackmap_"


def read_counters(host: str, port: int, timeout: float = 30.0) -> dict[str, int]:
    """Ask once, on a connection of its own.

    Returns:
        The counters by name, without their common prefix; empty when the server has none.

    Raises:
        OSError: the server cannot be reached, hangs up or does not answer in time.
    """
    with socket.create_connection((host, port), timeout) as sock:
        sock.sendall(b"stats stackmap\r\n")
        reply = bytearray()
        while not reply.endswith((b"END\r\n", b"ERROR\r\n", b"RESET\r\n")):
            received = sock.recv(65536)
            if not received:
                raise ConnectionError(f"{host}:{port} hung up while it reported its counters")
            reply += received
    counters = {}
    for line in reply.decode().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "STAT" and words[1].startswith(_PREFIX):
            counters[words[1].removeprefix(_PREFIX)] = int(words[2])
    return counters


def settled_counters(host: str, port: int, patience: float = 3.0) -> dict[str, int]:
    """Ask until no transmit buffer waits for an acknowledgement, or patience is at its end.

    The clients of a finished run have acknowledged everything when they close, but the last
    acknowledgements may still be under way.
    """
    counters: dict[str, int] = {}

    def settled() -> bool:
        nonlocal counters
        counters = read_counters(host, port)
        return counters.get("bufs_pinned", 0) == 0

    wait_until(settled, patience, pause=0.1)
    return counters
