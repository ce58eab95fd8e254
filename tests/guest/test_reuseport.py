"""A listener for each ring, all on one port number: the recipe of docs/programming.md."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from tests.guest.wire import ADDRESS, NIC, in_peer_namespace
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap import Connection, Listener, Ring

RINGS = 2
#: So many that chance does not leave a ring without any.
CLIENTS = 64


class Server(threading.Thread):
    """A thread with a ring and a listener of its own, which echoes."""

    def __init__(self, ring: Ring, listener: Listener) -> None:
        super().__init__()
        self.ring = ring
        self.listener = listener
        self.accepted: set[Connection] = set()
        self.heard: set[Connection] = set()
        self.stop = False
        self.trouble: BaseException | None = None

    def run(self) -> None:
        try:
            self.ring.watch(self.listener, lambda: self.accepted.add(self.listener.accept()))
            while not self.stop:
                for segment in self.ring.exchange(timeout=0.1):
                    if not segment.event:
                        self.heard.add(segment.connection)
                        segment.connection.write(segment.view)
            self.ring.unwatch(self.listener)
        except BaseException as trouble:  # noqa: BLE001 (the test tells of it)
            self.trouble = trouble


@pytest.fixture
def servers() -> Iterator[tuple[int, list[Server]]]:
    """The port number, and a thread for each ring."""
    number = 0
    with RingPort(NIC, rings=RINGS) as port:
        threads = []
        for ring in port.rings:
            sock = socket.create_server((ADDRESS, number), reuse_port=True, backlog=CLIENTS)
            number = sock.getsockname()[1]
            threads.append(Server(ring, ring.attach_listener(sock)))
        for thread in threads:
            thread.start()
        yield number, threads
        for thread in threads:
            thread.stop = True
            thread.join(60)
        assert [thread.trouble for thread in threads] == [None] * RINGS


def test_each_ring_serves_what_its_listener_accepts(servers: tuple[int, list[Server]]) -> None:
    number, threads = servers
    with ExitStack() as stack:
        peers = []
        for _ in range(CLIENTS):
            peer = stack.enter_context(closing(in_peer_namespace()))
            peer.settimeout(60.0)
            peer.connect((ADDRESS, number))
            peers.append(peer)
        for _ in range(3):
            for index, peer in enumerate(peers):
                peer.sendall(b"client %04d" % index)
            for index, peer in enumerate(peers):
                assert receive_exactly(peer, 11) == b"client %04d" % index
        assert sum(len(thread.accepted) for thread in threads) == CLIENTS
        for thread in threads:
            assert thread.accepted, "a ring without connections"
            assert thread.heard == thread.accepted
