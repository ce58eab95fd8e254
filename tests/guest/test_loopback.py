"""Connections whose other end is on the same host: they cross ``lo``, not the NIC."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from stackmap import Event, RingPort
from tests.guest.raw import ATTACH_LISTENER, CLOSED, EOF, OPEN, RawPort
from tests.guest.site import KernelLog
from tests.guest.streams import carry
from tests.guest.wire import ADDRESS, ADDRESS6, NIC, connect_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTE = 1_000_000
PATIENCE = 60.0

#: Addresses of the NIC that is bound, and of lo itself.
ADDRESSES = [ADDRESS, "127.0.0.1", ADDRESS6, "::1"]


def connect_here(address: str) -> tuple[socket.socket, socket.socket]:
    """A connection of this host with itself: the end that connected, and the one that accepted."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        one = socket.create_connection(listener.getsockname()[:2], timeout=PATIENCE)
        other, _address = listener.accept()
    for sock in (one, other):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


@pytest.fixture(autouse=True)
def quiet_kernel() -> Iterator[None]:
    """The kernel logs nothing meanwhile."""
    log = KernelLog()
    with closing(log):
        yield
        assert log.complaints() == []


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("attached", ["the accepting end", "the connecting end", "both"])
def test_a_stream_each_way(address: str, attached: str) -> None:
    one, other = connect_here(address)
    with RingPort(NIC) as port, closing(one), closing(other):
        if attached == "both":
            carry(port, [(port.attach(one), port.attach(other))], MEGABYTE)
        elif attached == "the accepting end":
            carry(port, [(port.attach(other), one)], MEGABYTE)
        else:
            carry(port, [(port.attach(one), other)], MEGABYTE)
        deadline = time.monotonic() + PATIENCE
        while port.stats().bufs_pinned:
            assert time.monotonic() < deadline, port.stats()
            port.exchange(0.01)
        assert port.stats().slots_released_reset == 0


def test_beside_connections_of_the_wire() -> None:
    """One sync that has slots for both kinds."""
    here = [connect_here(ADDRESS) for _ in range(4)]
    wire = [connect_pair() for _ in range(4)]
    with RingPort(NIC, rings=1) as port:
        lines = [(port.attach(accepted), peer) for peer, accepted in (*here, *wire)]
        carry(port, lines, MEGABYTE // 4)
    for pair in (*here, *wire):
        for sock in pair:
            sock.close()


def test_between_two_rings() -> None:
    """One ring's payload is received by another while the first one's sync is under way."""
    one, other = connect_here(ADDRESS)
    with RawPort(16, 16, rings=2) as port, closing(one), closing(other):
        ids = [port.attach_to(index, sock).id for index, sock in enumerate((one, other))]
        for number in range(200):
            way = number % 2
            word = b"%04d" % number
            port.pairs[way].send(ids[way], word)
            got: list[tuple[int, bytes, int, int]] = []
            deadline = time.monotonic() + PATIENCE
            while not got:
                assert time.monotonic() < deadline
                got = port.pairs[1 - way].receive()
            assert got == [(ids[1 - way], word, 0, 0)]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_attached_listener(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with RawPort() as port, socket.create_server((address, 0), family=family) as listener:
        port.attach_to(0, listener, ATTACH_LISTENER)
        with socket.create_connection(listener.getsockname()[:2], timeout=PATIENCE) as peer:
            peer.sendall(b"from here")
            accepted, _name = listener.accept()
            with accepted:
                found: list[tuple[int, bytes, int, int]] = []
                deadline = time.monotonic() + PATIENCE
                while len(found) < 2:
                    assert time.monotonic() < deadline, found
                    found += port.receive()
                (id, _open, event, _err), second = found
                assert (event, second) == (OPEN, (id, b"from here", 0, 0))
                port.send(id, b"to here")
                assert peer.recv(100) == b"to here"


def test_it_ends_in_order() -> None:
    """Both ends are attached, and one is closed: the other hears every byte, then EOF."""
    one, other = connect_here(ADDRESS)
    with RawPort() as port, closing(one), closing(other):
        here, there = port.attach(one), port.attach(other)
        port.send(here, b"last words")
        one.close()
        found: list[tuple[int, bytes, int, int]] = []
        deadline = time.monotonic() + PATIENCE
        while not {(here, CLOSED), (there, EOF)} <= {(id, event) for id, _d, event, _x in found}:
            assert time.monotonic() < deadline, found
            found += port.receive()
        assert [slot for slot in found if slot[0] == there] == [
            (there, b"last words", 0, 0), (there, b"", EOF, 0)
        ]  # fmt: skip


def test_a_reset_is_an_error() -> None:
    one, other = connect_here(ADDRESS)
    with RingPort(NIC) as port, closing(one), closing(other):
        here, there = port.attach(one), port.attach(other)
        there.write(b"never acknowledged in full" * 1000)
        port.exchange()
        here.abort()
        story: list[Event] = []
        deadline = time.monotonic() + PATIENCE
        while Event.CLOSED not in story:
            assert time.monotonic() < deadline, story
            story += [
                event
                for segment in port.exchange(0.1)
                for event in Event
                if segment.connection is there and segment.event & event
            ]
        assert Event.ERROR in story
