"""Several rings with a thread each: every byte right, and connections where their packets arrive.

``tests/vm/test_two_cpus.py`` runs this in a guest with two CPUs.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from stackmap import Event, Ring, RingConnection, RingPort
from tests.guest.wire import ADDRESS, NIC, in_peer_namespace
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60.0
CPUS = (0, 1)


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Run this thread there and nowhere else."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server(threading.Thread):
    """Echoes on one ring, on one CPU."""

    def __init__(self, ring: Ring, cpu: int) -> None:
        super().__init__()
        self.opened: list[RingConnection] = []
        self.failure: BaseException | None = None
        self.ready = threading.Event()
        self._ring = ring
        self._cpu = cpu
        self._over = threading.Event()

    def run(self) -> None:
        try:
            with on_cpu(self._cpu):
                while not self._over.is_set():
                    self._serve()
                    self.ready.set()
        except BaseException as failure:  # noqa: BLE001 (the main thread raises it)
            self.failure = failure
            self.ready.set()

    def _serve(self) -> None:
        for segment in self._ring.exchange(0.02):
            connection = segment.connection
            assert isinstance(connection, RingConnection)
            assert connection.ring is self._ring
            if segment.event & Event.OPEN:
                assert connection.app is None
                connection.app = "open"
                self.opened.append(connection)
            elif segment.event & (Event.EOF | Event.ERROR):
                connection.close()
            elif not segment.event:
                assert connection.app == "open"
                connection.write(segment.view)

    def end(self) -> None:
        self._over.set()
        self.join(PATIENCE)
        if self.failure:
            raise self.failure


@contextmanager
def serving(port: RingPort) -> Iterator[list[Server]]:
    """A server for each ring, ready."""
    servers = [Server(ring, cpu) for ring, cpu in zip(port.rings, CPUS, strict=True)]
    for server in servers:
        server.start()
    try:
        for server in servers:
            assert server.ready.wait(PATIENCE)
        yield servers
    finally:
        for server in servers:
            server.end()


def connect(address: tuple[str, int]) -> socket.socket:
    peer = in_peer_namespace()
    peer.settimeout(PATIENCE)
    peer.connect(address)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


class Echoed(threading.Thread):
    """Sends bytes that repeat nowhere, and compares what comes back."""

    def __init__(self, peer: socket.socket, seed: int, size: int) -> None:
        super().__init__()
        self.right = False
        self._peer = peer
        self._data = random.Random(seed).randbytes(size)
        self._sizes = random.Random(seed)

    def run(self) -> None:
        answer = bytearray()
        sent = 0
        while len(answer) < len(self._data):
            if sent - len(answer) < 200_000 and sent < len(self._data):
                sent += self._peer.send(self._data[sent : sent + self._sizes.randrange(1, 20_000)])
            else:
                answer += self._peer.recv(1 << 16)
        self._peer.shutdown(socket.SHUT_WR)
        self.right = answer == self._data and self._peer.recv(1) == b""
        self._peer.close()


def test_each_ring_serves_its_own_connections() -> None:
    """Every thread has a listener of its own; nothing is shared but the buffers."""
    with RingPort(NIC, rings=2, tx_slots=64, rx_slots=64) as port:
        listeners = [
            ring.attach_listener(socket.create_server((ADDRESS, 0))) for ring in port.rings
        ]
        clients = []
        for number in range(8):
            listener = listeners[number % 2]
            peer = connect(listener.sock.getsockname())
            listener.accept().app = "open"
            clients.append(Echoed(peer, number, 1 << 20))
        with serving(port) as servers:
            for client in clients:
                client.start()
            for client in clients:
                client.join(2 * PATIENCE)
        assert [client.right for client in clients] == [True] * 8
        assert [server.opened for server in servers] == [[], []]
        stats = port.stats()
        assert stats.rx_bytes == stats.tx_bytes == 8 << 20
        assert (stats.bad_slots, stats.unknown_conn, stats.bad_rings) == (0, 0, 0)


@pytest.mark.parametrize("how", ["listener", "place"])
def test_connections_are_placed_where_their_packets_arrive(how: str) -> None:
    with (
        RingPort(NIC, rings=2) as port,
        socket.create_server((ADDRESS, 0)) as sock,
        serving(port) as servers,
    ):
        listener = port.place_listener(sock.dup()) if how == "listener" else None
        ports: dict[int, set[int]] = {cpu: set() for cpu in CPUS}
        peers = []
        for number in range(16):
            cpu = CPUS[number % 2]
            with on_cpu(cpu):
                peers.append(connect(sock.getsockname()))
                ports[cpu].add(peers[-1].getsockname()[1])
                if listener:
                    listener.accept()
                else:
                    port.place(sock.accept()[0])
        for peer in peers:
            peer.sendall(b"here")
        for peer in peers:
            assert receive_exactly(peer, 4) == b"here"
        found = [{c.sock.getpeername()[1] for c in server.opened} for server in servers]
        assert found == [ports[cpu] for cpu in CPUS]
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("how", ["listener", "place"])
def test_placing_from_another_thread_loses_nothing(how: str) -> None:
    """The first bytes are on their way while the connection is handed over, again and again."""
    with (
        RingPort(NIC, rings=2, tx_slots=64, rx_slots=64) as port,
        socket.create_server((ADDRESS, 0), backlog=100) as sock,
        serving(port) as servers,
    ):
        listener = port.place_listener(sock.dup()) if how == "listener" else None
        clients = []
        for number in range(60):
            peer = connect(sock.getsockname())
            clients.append(Echoed(peer, number, 50_000))
            clients[-1].start()
            if number % 3:
                time.sleep(0.002)
            if listener:
                listener.accept()
            else:
                port.place(sock.accept()[0])
        for client in clients:
            client.join(2 * PATIENCE)
        assert all(client.right for client in clients)
        assert sum(len(server.opened) for server in servers) == 60
        assert port.stats().unknown_conn == 0


def test_a_record_is_read_whole_while_it_is_written() -> None:
    """One thread reads as fast as it can what the other CPU writes."""
    with RingPort(NIC, rings=2) as port, socket.create_server((ADDRESS, 0)) as sock:
        listener = port.rings[0].attach_listener(sock)
        peer = connect(sock.getsockname())
        connection = listener.accept()
        connection.app = "open"
        client = Echoed(peer, 1, 4 << 20)
        with serving(port), on_cpu(1):
            client.start()
            while not connection.id:
                time.sleep(0.001)
            last = connection.tcp_state()
            reads = changes = 0
            while client.is_alive():
                try:
                    now = connection.tcp_state()
                except OSError:
                    break  # closed
                reads += 1
                changes += now != last
                assert now.bytes_acked <= now.bytes_sent - now.bytes_retrans
                assert now.bytes_accepted <= now.bytes_received
                assert now.bytes_received >= last.bytes_received
                assert now.bytes_acked >= last.bytes_acked
                last = now
            client.join(PATIENCE)
        assert client.right
        assert changes > 50
