"""Behaviour of ports on rings only: giving a socket back, and running out of buffers."""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from stackmap import (
    BackendUnavailableError,
    Event,
    Port,
    Ring,
    RingPort,
    Segment,
    SocketPort,
    _unclaimed,
)
from tests.guest.test_soft_errors import HOST, heard
from tests.guest.wire import ADDRESS, NIC, connect_pair, in_peer_namespace
from tests.receiving import receive_exactly
from tests.waiting import eventually

PATIENCE = 60.0


def test_detach_delivers_what_the_ring_holds() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        connection.write(b"by ring")
        port.exchange()
        assert peer.recv(7) == b"by ring"
        peer.sendall(b"in the ring ")
        eventually(lambda: port.stats().rx_bytes == 12, port.stats)
        port.detach(connection)
        peer.sendall(b"in the socket")
        story: list[bytes | Event] = []
        deadline = time.monotonic() + PATIENCE
        while Event.CLOSED not in story:
            assert time.monotonic() < deadline, story
            story += [segment.event or bytes(segment.view) for segment in port.exchange(0.1)]
        assert story == [b"in the ring ", Event.CLOSED]
        assert sock.recv(100) == b"in the socket"
        sock.close()
        peer.close()


def test_detach_sends_what_was_asked_for() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        connection.write(b"bye")
        connection.shutdown_write()
        port.detach(connection)
        assert receive_exactly(peer, 3) == b"bye"
        assert peer.recv(1) == b""
        peer.sendall(b"to the socket")
        assert sock.recv(100) == b"to the socket"
        sock.close()
        peer.close()


def test_refused_detaches() -> None:
    with RingPort(NIC, rings=2) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        with pytest.raises(ValueError, match="another ring"):
            port.rings[1].detach(connection)
        connection.write(b"bye")
        connection.close()
        with pytest.raises(OSError, match="gone") as caught:
            port.detach(connection)
        assert caught.value.errno == errno.ENOENT
        assert receive_exactly(peer, 3) == b"bye"
        assert peer.recv(1) == b""
        peer.close()


def test_closing_while_no_buffer_is_left_loses_nothing() -> None:
    """Sixteen spare buffers for twelve connections: the ring stops before all is accepted."""
    payload = bytes(range(251)) * 300
    with RingPort(NIC, tx_slots=4, rx_slots=16) as port:
        pairs = [connect_pair() for _ in range(12)]
        received = [b""] * len(pairs)

        def read(number: int) -> None:
            peer, _sock = pairs[number]
            time.sleep(0.3)
            while chunk := peer.recv(65536):
                received[number] += chunk

        readers = [threading.Thread(target=read, args=(i,)) for i in range(len(pairs))]
        for reader in readers:
            reader.start()
        for _peer, sock in pairs:
            connection = port.attach(sock)
            connection.write(payload)
            connection.close()
        closed = 0
        deadline = time.monotonic() + PATIENCE
        while closed < len(pairs):
            assert time.monotonic() < deadline, closed
            closed += sum(bool(s.event & Event.CLOSED) for s in port.exchange(0.1))
        for reader in readers:
            reader.join(PATIENCE)
        assert [len(data) for data in received] == [len(payload)] * len(pairs)
        assert all(data == payload for data in received)
        assert port.stats().unknown_conn == 0
        for peer, _sock in pairs:
            peer.close()


def test_a_closed_port_gives_no_socket_back() -> None:
    peer, sock = connect_pair()
    port = RingPort(NIC)
    connection = port.attach(sock)
    connection.write(b"handed over by close()")
    port.close()
    with pytest.raises(ValueError, match="closed"):
        port.detach(connection)
    assert peer.recv(100) == b"handed over by close()"
    peer.close()


@pytest.mark.parametrize("backend", ["rings", "sockets"])
def test_an_error_ends_the_connection_whatever_it_is(backend: str) -> None:
    """With IP_RECVERR, TCP goes on after some errors; a port does not, on either backend."""
    peer, sock = connect_pair()
    opened: Port = RingPort(NIC) if backend == "rings" else SocketPort()
    with opened as port, heard(sock) as wire:
        connection = port.attach(sock)
        connection.write(b"hello")
        port.exchange()
        assert peer.recv(100) == b"hello"
        wire.complain(HOST)
        story: list[tuple[Event, int]] = []
        deadline = time.monotonic() + PATIENCE
        while not story or Event.CLOSED not in story[-1][0]:
            assert time.monotonic() < deadline, story
            story += [(segment.event, segment.errno) for segment in port.exchange(0.1)]
        assert story == [(Event.ERROR, errno.EHOSTUNREACH), (Event.CLOSED, 0)]
        assert sock.fileno() == -1
        connection.write(b"into the void")
        assert connection.pending == 0
        assert peer.recv(1) == b""
        peer.close()


def test_a_connection_that_nobody_claims_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if accept() had been interrupted: nobody has the connection, and its socket is closed."""
    monkeypatch.setattr(_unclaimed, "_ABANDONED_AFTER", 0.2)
    with RingPort(NIC) as port, socket.create_server((ADDRESS, 0)) as sock:
        port.attach_listener(sock)
        peer = in_peer_namespace()
        peer.connect(sock.getsockname())
        bypassed, _name = sock.accept()
        peer.sendall(b"to nobody")
        start = time.monotonic()
        while not port.rings[0]._unclaimed:
            assert time.monotonic() < start + PATIENCE
            assert port.exchange(0.1) == []
        bypassed.close()
        while port.rings[0]._unclaimed:
            assert time.monotonic() < start + PATIENCE
            assert port.exchange(0.1) == []
        start = time.monotonic()
        assert port.exchange(0.5) == []
        assert time.monotonic() - start > 0.4, "it still polls"
        peer.close()


def test_a_listener_is_forgotten_once_its_connections_are_named() -> None:
    with RingPort(NIC) as port:
        port.attach_listener(socket.create_server((ADDRESS, 0))).close()
        assert not port._listeners
        with port.attach_listener(socket.create_server((ADDRESS, 0))) as listener:
            peer = in_peer_namespace()
            peer.connect(listener.sock.getsockname())
            connection = listener.accept()
        listener.close()
        deadline = time.monotonic() + PATIENCE
        while not connection.id:
            assert port._listeners
            assert time.monotonic() < deadline
            port.exchange(0.1)
        assert not port._listeners
        peer.close()


def test_a_ring_that_another_thread_waits_on_is_left_alone() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        heard: list[Segment] = []
        thread = threading.Thread(target=lambda: heard.extend(port.exchange(PATIENCE)))
        thread.start()
        time.sleep(0.5)
        connection.write(b"for the next exchange")
        with pytest.raises(OSError, match="close") as caught:
            port.close()
        assert caught.value.errno == errno.EBUSY
        peer.setblocking(False)
        time.sleep(0.2)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        peer.send(b"wake up")
        thread.join(PATIENCE)
        assert [bytes(segment.view) for segment in heard] == [b"wake up"]
        port.exchange()
        peer.settimeout(PATIENCE)
        assert peer.recv(100) == b"for the next exchange"
        peer.close()


@pytest.mark.parametrize("way", ["place", "place_listener"])
def test_a_placed_connection_wakes_its_ring(way: str) -> None:
    """No data has arrived for it, and its ring's thread sleeps without a timeout."""
    with RingPort(NIC, rings=2, tx_slots=16, rx_slots=16) as port:
        heard: dict[int, list[Segment]] = {}

        def serve(ring: Ring) -> None:
            heard[ring.index] = ring.exchange(None)

        threads = [threading.Thread(target=serve, args=(ring,)) for ring in port.rings]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        if way == "place":
            peer, sock = connect_pair()
            connection = port.place(sock)
        else:
            listener = port.place_listener(socket.create_server((ADDRESS, 0)))
            peer = in_peer_namespace()
            peer.connect(listener.sock.getsockname())
            connection = listener.accept()
        deadline = time.monotonic() + PATIENCE
        while not heard:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ((index, segments),) = heard.items()
        if not segments:  # accept() had not returned it yet
            segments = port.rings[index].exchange(PATIENCE)
        assert [(s.connection, s.event) for s in segments] == [(connection, Event.OPEN)]
        assert connection.ring is port.rings[index]
        assert connection.peername is not None
        port.rings[1 - index].wakeup()
        for thread in threads:
            thread.join(PATIENCE)
        assert heard[1 - index] == []
        connection.write(b"the server speaks first")
        port.rings[index].flush()
        assert receive_exactly(peer, 23) == b"the server speaks first"
        peer.close()


@pytest.mark.parametrize("spin", [-0.001, 0.0011, float("nan")])
def test_a_spin_that_no_exchange_would_take_is_refused(spin: float) -> None:
    with pytest.raises(ValueError, match=r"0 to 0\.001 seconds"):
        RingPort(NIC, spin=spin)


def test_a_port_that_fails_to_open_leaves_nothing_open() -> None:
    """Whichever descriptor it is for which there is no room."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, limits[1]))
    taken: list[int] = []

    def take_all() -> int:
        before = len(taken)
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        return len(taken) - before

    try:
        take_all()
        for room in range(2 * 3):  # a file and an epoll of each ring
            for _ in range(room):
                os.close(taken.pop())
            with pytest.raises(BackendUnavailableError, match="Too many open files"):
                RingPort(NIC, rings=3)
            assert take_all() == room
        for _ in range(2 * 3):
            os.close(taken.pop())
        RingPort(NIC, rings=3).close()
        assert take_all() == 2 * 3
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
