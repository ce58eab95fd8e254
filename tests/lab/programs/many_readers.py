"""The peer of ``batches.py``: ``many_readers ADDRESS PORT CONNECTIONS BYTES ROUNDS``."""

from __future__ import annotations

import socket
import sys


def read(address: str, port: int, connections: int, size: int, rounds: int) -> None:
    """Open so many connections, and check what comes on each, round by round."""
    expected = (bytes(range(256)) * (size // 256 + 1))[:size]
    peers = [socket.create_connection((address, port)) for _ in range(connections)]
    for number in range(rounds):
        for peer in peers:
            assert peer.recv(size, socket.MSG_WAITALL) == expected
        print(f"read {number}", flush=True)


if __name__ == "__main__":
    read(sys.argv[1], *map(int, sys.argv[2:]))
