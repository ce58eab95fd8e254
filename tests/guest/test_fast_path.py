"""Batches of small messages, which C makes and takes back: their use, and that none leaks."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections.abc import Iterator

import pytest

from stackmap import Event, RingPort, Segment
from stackmap._fast import LentSegment
from tests.guest.wire import NIC, connect_pair

PATIENCE = 60.0


@pytest.fixture
def port() -> Iterator[RingPort]:
    with RingPort(NIC) as port:
        yield port


def payloads(port: RingPort) -> list[Segment]:
    """The next batch that is not empty."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if segments := port.exchange(0.1):
            return segments
    raise AssertionError("nothing has arrived")


@pytest.mark.parametrize("viewed", [False, True])
def test_a_payload_ends_with_its_exchange(port: RingPort, viewed: bool) -> None:
    """A view is made when somebody asks for it, and released if nobody has, too."""
    peer, sock = connect_pair()
    port.attach(sock)
    peer.sendall(b"payload")
    (segment,) = payloads(port)
    assert segment.tobytes() == b"payload"
    if viewed:
        assert bytes(segment.view) == segment.tobytes() == b"payload"
        assert segment.view is segment.view
    port.exchange(0)
    with pytest.raises(ValueError, match="released"):
        segment.tobytes()
    with pytest.raises(ValueError, match="released"):
        bytes(segment.view)
    assert repr(segment).endswith("given back>")
    peer.close()


def test_echoing_leaves_no_memory_behind(port: RingPort) -> None:
    peer, sock = connect_pair()
    connection = port.attach(sock)

    def echo(times: int) -> None:
        for number in range(times):
            peer.sendall(b"%060d" % number)
            for segment in payloads(port):
                segment.connection.write(segment.view)
            port.exchange(0)
            assert peer.recv(100) == b"%060d" % number
        gc.collect()

    echo(50)
    references = sys.getrefcount(connection), sys.getrefcount(Event.NONE), sys.getrefcount(None)
    blocks = sys.getallocatedblocks()
    echo(1000)
    assert sys.getallocatedblocks() - blocks < 100
    for before, now in zip(
        references,
        (sys.getrefcount(connection), sys.getrefcount(Event.NONE), sys.getrefcount(None)),
        strict=True,
    ):
        assert now - before < 100
    peer.close()


def test_a_slice_of_a_small_payload_outlives_the_port(port: RingPort) -> None:
    peer, sock = connect_pair()
    port.attach(sock)
    peer.sendall(b"kept")
    (segment,) = payloads(port)
    kept = segment.view[1:3]
    with pytest.warns(ResourceWarning, match="still in use"):
        port.close()
    assert bytes(kept) == b"ep"
    peer.close()


def test_a_port_with_a_slice_of_a_page_does_not_close(port: RingPort) -> None:
    peer, sock = connect_pair()
    port.attach(sock)
    peer.sendall(b"k" * 3000)
    (segment,) = payloads(port)
    kept = segment.view[1:3]
    with pytest.warns(ResourceWarning, match="still in use"), pytest.raises(BufferError):
        port.close()
    with pytest.raises(BufferError):
        port.close()
    assert bytes(kept) == b"kk"
    kept.release()
    peer.close()


def test_slices_of_many_pages_leave_the_ring_enough_of_them() -> None:
    """Those set aside cost spare buffers; with a quarter of them gone, payloads are copied."""
    with RingPort(NIC, tx_slots=4, rx_slots=8, spare_buffers=32) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        kept = []
        for number in range(200):
            peer.sendall(b"%04d" % number * 750)
            got = b""
            while len(got) < 3000:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    for segment in port.exchange(PATIENCE):
                        got += bytes(segment.view)
                        kept.append(segment.view[:4])
            assert got == b"%04d" % number * 750
        assert not isinstance(segment, LentSegment)
        assert 8 <= len(port.rings[0]._pair.aside) <= 16
        assert b"".join(bytes(piece) for piece in kept[:5]) == b"00000001000200030004"
        assert port.stats().bad_slots == 0
        kept.clear()
        peer.sendall(b"x" * 3000)
        (segment,) = payloads(port)
        connection.forward(segment)
        port.exchange()
        port.exchange()
        assert not port.rings[0]._pair.aside
        peer.close()


def test_views_end_with_the_next_exchange(port: RingPort) -> None:
    peer, sock = connect_pair()
    port.attach(sock)
    peer.sendall(b"gone")
    (segment,) = payloads(port)
    view = segment.view
    port.exchange()
    for late in (view, segment.view):
        with pytest.raises(ValueError, match="released"):
            bytes(late)
    peer.close()


def test_small_and_large_in_one_batch(port: RingPort) -> None:
    peer, sock = connect_pair()
    other_peer, other_sock = connect_pair()
    port.attach(sock)
    port.attach(other_sock)
    peer.sendall(b"small")
    other_peer.sendall(b"L" * 3000)
    received: dict[int, bytes] = {}
    deadline = time.monotonic() + PATIENCE
    while sum(map(len, received.values())) < 3005:
        assert time.monotonic() < deadline
        for segment in port.exchange(0.1):
            number = segment.connection.sock.fileno()
            received[number] = received.get(number, b"") + bytes(segment.view)
    assert received == {sock.fileno(): b"small", other_sock.fileno(): b"L" * 3000}
    peer.close()
    other_peer.close()


def test_a_view_of_larger_items_is_written_as_bytes(port: RingPort) -> None:
    peer, sock = connect_pair()
    connection = port.attach(sock)
    connection.write(memoryview(b"12345678" * 8).cast("Q"))
    port.exchange()
    received = b""
    while len(received) < 64:
        received += peer.recv(100)
    assert received == b"12345678" * 8
    peer.close()


def test_a_closed_port_says_so() -> None:
    port = RingPort(NIC)
    port.close()
    with pytest.raises(ValueError, match="the port is closed"):
        port.exchange()
