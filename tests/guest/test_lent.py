"""Lent payload: what may be done to it when, and that nothing of it is left behind."""

from __future__ import annotations

import gc
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from stackmap import Connection, Event, RingPort, Segment
from stackmap._fast import LentSegment
from tests.guest.wire import NIC, connect_pair

PATIENCE = 60.0
TEXT = bytes(range(250)) * 12


@pytest.fixture
def port() -> Iterator[RingPort]:
    with RingPort(NIC, extra_buffers=2) as port:
        yield port


def receive(port: RingPort) -> LentSegment:
    """The next payload, of 3000 bytes."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for segment in port.exchange(0.1):
            assert isinstance(segment, LentSegment)
            return segment
    raise AssertionError("nothing has arrived")


def assert_given_back(segment: Segment) -> None:
    """Its payload is gone, and that does no harm."""
    segment.release()
    assert repr(segment).endswith("given back>")
    with pytest.raises(ValueError, match="released"):
        segment.tobytes()
    with pytest.raises(ValueError, match="released"):
        bytes(segment.view)


@pytest.mark.parametrize("viewed", [False, True])
def test_it_is_released_early(port: RingPort, viewed: bool) -> None:
    peer, sock = connect_pair()
    port.attach(sock)
    peer.sendall(TEXT)
    segment = receive(port)
    assert segment.tobytes() == TEXT
    if viewed:
        assert segment.view.readonly
        assert segment.view is segment.view
        assert repr(segment).startswith("<Segment 3000 bytes of <RingConnection")
    segment.release()
    assert segment.lender is None
    assert_given_back(segment)
    port.exchange()
    assert_given_back(segment)
    peer.close()


@pytest.mark.parametrize("viewed", [False, True])
def test_it_outlives_its_port_without_its_payload(viewed: bool) -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        port.attach(sock)
        peer.sendall(TEXT)
        segment = receive(port)
        if viewed:
            assert bytes(segment.view) == TEXT
    assert_given_back(segment)
    peer.close()


def test_another_thread_releases_it(port: RingPort) -> None:
    peer, sock = connect_pair()
    port.attach(sock)
    for _ in range(50):
        peer.sendall(TEXT)
        segment = receive(port)
        thread = threading.Thread(target=segment.release)
        thread.start()
        port.exchange()
        thread.join()
        assert_given_back(segment)
    peer.close()


def test_what_views_are_made_of_shows_nothing_afterwards(port: RingPort) -> None:
    peer, sock = connect_pair()
    connection = port.attach(sock)
    ends: list[Callable[[LentSegment], object]] = [
        lambda segment: segment.release(),
        connection.forward,
        lambda segment: port.keep(segment).release(),
        lambda _segment: port.exchange(),
    ]
    for end in ends:
        peer.sendall(TEXT)
        segment = receive(port)
        page = segment.view.obj
        end(segment)
        with pytest.raises(ValueError, match="given back"):
            memoryview(page)
    peer.close()


def test_a_slice_does_not_hinder_what_is_copied(port: RingPort) -> None:
    with RingPort(NIC) as other:
        peer, sock = connect_pair()
        other_peer, other_sock = connect_pair()
        port.attach(sock)
        onward = other.attach(other_sock)
        peer.sendall(TEXT)
        segment = receive(port)
        piece = segment.view[:10]
        onward.forward(segment)
        other.exchange()
        assert other_peer.recv(3000, socket.MSG_WAITALL) == TEXT
        assert bytes(piece) == TEXT[:10]
        piece.release()
        peer.close()
        other_peer.close()


def test_a_full_ring_takes_it_as_a_copy() -> None:
    with RingPort(NIC, tx_slots=4, rx_slots=8) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        peer.sendall(TEXT)
        segment = receive(port)
        connection.write(bytes(4096))
        connection.write(bytes(4096))
        connection.write(bytes(4096))
        connection.forward(segment)
        assert_given_back(segment)
        port.exchange()
        assert peer.recv(3 * 4096 + 3000, socket.MSG_WAITALL)[-3000:] == TEXT
        assert connection.bytes_written == 3 * 4096 + 3000
        peer.close()


def test_a_cycle_through_it_is_collected() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        connection: Connection | None = port.attach(sock)
        peer.sendall(TEXT)
        segment: LentSegment | None = receive(port)
        assert segment is not None
        assert connection is not None
        connection.app = [segment, segment.view]
        gone = weakref.ref(connection)
        segment = connection = None
    del port
    gc.collect()
    assert gone() is None
    peer.close()


def do_nothing(_segment: LentSegment) -> None:
    pass


def view(segment: LentSegment) -> None:
    assert segment.view


def use_a_slice(segment: LentSegment) -> None:
    piece = segment.view[1:]
    with pytest.raises(BufferError, match="still in use"):
        segment.release()
    piece.release()


def send_on(segment: LentSegment) -> None:
    segment.connection.forward(segment)


@pytest.mark.parametrize("use", [do_nothing, view, use_a_slice, send_on])
def test_it_leaves_no_memory_behind(port: RingPort, use: Callable[[LentSegment], None]) -> None:
    peer, sock = connect_pair()
    connection = port.attach(sock)

    def receive_and_use(times: int) -> None:
        for _ in range(times):
            peer.sendall(TEXT)
            use(receive(port))
            if use is send_on:
                port.exchange()
                assert peer.recv(3000, socket.MSG_WAITALL) == TEXT
        gc.collect()

    def references() -> tuple[int, ...]:
        return tuple(map(sys.getrefcount, (connection, Event.NONE, None, port.rings[0]._fast)))

    receive_and_use(20)
    blocks, before = sys.getallocatedblocks(), references()
    receive_and_use(400)
    assert sys.getallocatedblocks() - blocks < 100
    assert all(now - then < 100 for then, now in zip(before, references(), strict=True))
    peer.close()


def test_keeping_leaves_no_memory_behind(port: RingPort) -> None:
    peer, sock = connect_pair()
    port.attach(sock)

    def keep(times: int) -> None:
        for _ in range(times):
            peer.sendall(TEXT)
            with port.keep(receive(port), copy=False) as kept:
                assert bytes(kept.view) == TEXT
        gc.collect()

    keep(20)
    blocks = sys.getallocatedblocks()
    keep(400)
    assert sys.getallocatedblocks() - blocks < 100
    assert sorted(port._kernel.extra_buffers) == sorted(set(port._kernel.extra_buffers))
    assert len(port._kernel.extra_buffers) == 2
    peer.close()
