"""A raw port with connections to be bad with, and one that must stay unharmed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.guest.wire import connect_pair

if TYPE_CHECKING:
    from tests.guest.raw import RawPort


class Attached:
    """A raw port with two connections: one to be bad with, one to stay honest."""

    def __init__(self, port: RawPort) -> None:
        self.port = port
        self.peer, self.sock = connect_pair()
        self.honest_peer, self.honest_sock = connect_pair()
        self.id = port.attach(self.sock)
        self.honest = port.attach(self.honest_sock)

    def close(self) -> None:
        for sock in (self.peer, self.sock, self.honest_peer, self.honest_sock):
            sock.close()

    def check_honest(self) -> None:
        """The other connection still works in both directions."""
        self.port.send(self.honest, b"still here")
        assert self.honest_peer.recv(100) == b"still here"
        self.honest_peer.sendall(b"me too")
        deadline = time.monotonic() + 20
        got = b""
        while got != b"me too":
            assert time.monotonic() < deadline
            got += b"".join(p for i, p, _e, _x in self.port.receive() if i == self.honest)
