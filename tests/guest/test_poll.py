"""poll() and epoll on the descriptors of a port and of a ring: the contract that any file has."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from stackmap import DEVICE
from tests.guest import uring
from tests.guest.raw import (
    SMIOC_ATTACH,
    SYNC_RX,
    SYNC_TX,
    RawPair,
    RawPort,
    register,
    register_body,
)
from tests.guest.wire import NIC, connect_pair, peer_loses

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

PATIENCE = 240.0
#: For what must not happen.
A_WHILE = 0.3
#: Much longer than an ACK takes that comes with a retransmission, much shorter than PATIENCE.
NOT_THE_TIMEOUT = 120.0


@dataclass
class Polled:
    """A port of two pairs of rings, one of which is polled, and a connection of that."""

    port: RawPort
    pair: RawPair
    peer: socket.socket
    id: int

    @property
    def fd(self) -> int:
        return self.pair.fd

    def receive(self) -> bytes:
        """Take everything, as an application does that was told to."""
        return b"".join(data for _id, data, _events, _err in self.pair.receive(0))


@pytest.fixture(params=["the port's descriptor", "a ring's descriptor"])
def polled(request: pytest.FixtureRequest) -> Iterator[Polled]:
    peer, sock = connect_pair()
    with RawPort(8, 8, rings=2, spare=8) as port, closing(peer), closing(sock):
        index = int(request.param == "a ring's descriptor")
        yield Polled(port, port.pairs[index], peer, port.attach_to(index, sock).id)


def poller(fd: int, events: int) -> select.poll:
    wanted = select.poll()
    wanted.register(fd, events)
    return wanted


def test_epoll_knows_a_port_from_before_it_was_one() -> None:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    peer, sock = connect_pair()
    with select.epoll() as epoll, closing(peer), closing(sock):
        epoll.register(fd, select.EPOLLIN)
        assert epoll.poll(0) == [(fd, select.EPOLLERR)]
        register(fd, f"tcp:{NIC}", register_body())
        assert epoll.poll(0) == []
        attach = struct.pack("<iIIIII", sock.fileno(), 0, 0, 0, 0, 0)
        fcntl.ioctl(fd, SMIOC_ATTACH, attach)
        peer.sendall(b"wake")
        assert epoll.poll(PATIENCE) == [(fd, select.EPOLLIN)]
        os.close(fd)


@pytest.mark.parametrize("kind", ["poll", "epoll"])
def test_data_not_taken_is_reported_again(polled: Polled, kind: str) -> None:
    """Until the wake-up point, which is cur and not head, has passed it."""
    with select.epoll() as epoll:
        epoll.register(polled.fd, select.EPOLLIN)
        waits = poller(polled.fd, select.POLLIN)

        def told(seconds: float) -> list[tuple[int, int]]:
            return epoll.poll(seconds) if kind == "epoll" else waits.poll(seconds * 1000)

        readable = [(polled.fd, select.POLLIN)]
        assert told(0) == []
        for word in (b"one", b"two"):
            polled.peer.sendall(word)
            for _ in range(3):
                assert told(PATIENCE) == readable
            polled.pair.rx.set_cur(polled.pair.rx.tail)
            assert told(0) == []
            assert polled.receive() == word
            assert told(0) == []


def test_edge_triggered_reports_new_data_once(polled: Polled) -> None:
    with select.epoll() as epoll:
        epoll.register(polled.fd, select.EPOLLIN | select.EPOLLET)
        for number in range(5):
            word = b"word %d" % number
            polled.peer.sendall(word)
            assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLIN)], word
            assert epoll.poll(A_WHILE) == []
            assert polled.receive() == word
            polled.pair.sync(SYNC_RX)
            assert epoll.poll(0) == []


def test_edge_triggered_reports_earlier_data(polled: Polled) -> None:
    polled.peer.sendall(b"early")
    assert poller(polled.fd, select.POLLIN).poll(PATIENCE * 1000)
    with select.epoll() as epoll:
        epoll.register(polled.fd, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLIN)]
        assert polled.receive() == b"early"


def test_io_uring_multishot_reports_each_event(polled: Polled) -> None:
    """By one request: unlike epoll, it does not look at the file again when it has told."""
    with uring.Uring() as ring:
        ring.poll(polled.fd, select.POLLIN)
        for number in range(5):
            word = b"word %d" % number
            polled.peer.sendall(word)
            got = b""
            while got != word:
                told, _flags = ring.completion()
                assert told & select.POLLIN
                got += polled.receive()
                assert word.startswith(got)


def test_both_waiters_are_woken(polled: Polled) -> None:
    """Two threads, each with an epoll of its own on the same descriptor."""
    told: list[list[tuple[int, int]]] = []

    def wait() -> None:
        with select.epoll() as epoll:
            epoll.register(polled.fd, select.EPOLLIN)
            told.append(epoll.poll(2 * PATIENCE))

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(A_WHILE)
    polled.peer.sendall(b"to whom it may concern")
    for thread in threads:
        thread.join(PATIENCE)
    assert told == [[(polled.fd, select.EPOLLIN)]] * 2


def test_a_poll_sends_and_receives(polled: Polled) -> None:
    """As netmap's does: there need be no other system call."""
    pair = polled.pair
    waits = poller(polled.fd, select.POLLIN)
    for number in range(20):
        word = b"%04d" % number
        i = pair.tx.head
        pair.put(i, polled.id, word)
        pair.tx.set_head((i + 1) % pair.tx.n)
        waits.poll(0)
        assert polled.peer.recv(100) == word
        polled.peer.sendall(word)
        assert waits.poll(PATIENCE * 1000) == [(polled.fd, select.POLLIN)]
        slot = pair.rx.slot(pair.rx.head)
        at = pair.rx.address(slot.buf)
        assert pair.memory[at : at + slot.len] == word
        pair.rx.set_head(pair.rx.tail)


# -- room to send --


def fill_up(polled: Polled, ids: list[int]) -> int:
    """Send on one connection after the other until no slot is left; returns how many were used."""
    pair = polled.pair
    sent = 0
    while pair.tx.head != pair.tx.tail:
        i = pair.tx.head
        pair.put(i, ids[sent], b"%04d" % sent)
        pair.tx.set_head((i + 1) % pair.tx.n)
        pair.sync(SYNC_TX)
        sent += 1
    return sent


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize(
    "kind", ["poll", pytest.param("epoll", marks=pytest.mark.long), "epoll, edge triggered"]
)
def test_writable_while_there_is_room(polled: Polled, kind: str, unread: bool) -> None:
    """A ring that stopped for want of buffers is full; the ACK that brings some makes room.

    Whether received slots wait to be taken has nothing to do with it.
    """
    connections = [connect_pair() for _ in range(24)]
    index = polled.port.pairs.index(polled.pair)
    ids = [polled.port.attach_to(index, sock).id for _peer, sock in connections]
    if unread:
        polled.peer.sendall(b"unread")
        assert poller(polled.fd, select.POLLIN).poll(PATIENCE * 1000)
    took: list[float] = []
    with select.epoll() as epoll:
        edge = select.EPOLLET if "edge" in kind else 0
        epoll.register(polled.fd, select.EPOLLOUT | edge)
        waits = poller(polled.fd, select.POLLOUT)

        def told(seconds: float) -> list[tuple[int, int]]:
            return waits.poll(seconds * 1000) if kind == "poll" else epoll.poll(seconds)

        def wait() -> None:
            before = time.monotonic()
            writable.extend(told(PATIENCE))
            took.append(time.monotonic() - before)

        writable: list[tuple[int, int]] = []
        assert told(0) == [(polled.fd, select.POLLOUT)]
        with peer_loses(100):
            sent = fill_up(polled, ids)
            assert sent >= polled.pair.tx.n
            assert polled.port.stats()["stalls"]
            assert told(A_WHILE) == []
            waiting = threading.Thread(target=wait)
            waiting.start()
            time.sleep(A_WHILE)
            assert not took
        waiting.join()
        assert writable == [(polled.fd, select.POLLOUT)]
        assert took[0] < NOT_THE_TIMEOUT, "woken by the timeout only"
    polled.pair.sync_all()
    for number, (peer, _sock) in enumerate(connections[:sent]):
        assert peer.recv(4) == b"%04d" % number
    for pair_of_sockets in connections:
        for sock in pair_of_sockets:
            sock.close()


# -- nothing to do --


@pytest.mark.parametrize("kind", ["poll", "epoll", "epoll, edge triggered"])
def test_an_idle_wait_sleeps(polled: Polled, kind: str) -> None:
    """It takes the time that it was given, and of the processor next to nothing."""
    with select.epoll() as epoll:
        epoll.register(polled.fd, select.EPOLLIN | (select.EPOLLET if "edge" in kind else 0))
        waits = poller(polled.fd, select.POLLIN)
        polled.peer.sendall(b"not idle yet")
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLIN)]
        assert polled.receive() == b"not idle yet"
        polled.pair.sync(SYNC_RX)
        wall, processor = time.monotonic(), time.thread_time()
        for _ in range(4):
            assert (waits.poll(500) if kind == "poll" else epoll.poll(0.5)) == []
        wall, processor = time.monotonic() - wall, time.thread_time() - processor
        assert wall >= 2.0
        assert processor < wall / 4


# -- errors --


@pytest.mark.parametrize("ring", ["transmit", "receive"])
def test_a_bad_ring_is_an_error_once(polled: Polled, ring: str) -> None:
    """The kernel puts it back, so the next poll finds nothing wrong."""
    bad = polled.pair.tx if ring == "transmit" else polled.pair.rx
    before = bad.head
    waits = poller(polled.fd, select.POLLIN)
    bad.set_head(9999)
    assert waits.poll(PATIENCE * 1000) == [(polled.fd, select.POLLERR)]
    assert (bad.head, bad.cur) == (before, before)
    assert waits.poll(0) == []
    with select.epoll() as epoll:
        epoll.register(polled.fd, select.EPOLLIN)
        bad.set_head(9999)
        polled.peer.sendall(b"wakes")
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLERR)]
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLIN)]
    assert polled.receive() == b"wakes"
    assert polled.port.stats()["bad_rings"] == 2


def test_edge_triggered_goes_on_after_a_bad_ring(polled: Polled) -> None:
    with select.epoll() as epoll:
        epoll.register(polled.fd, select.EPOLLIN | select.EPOLLET)
        polled.pair.rx.set_head(9999)
        polled.peer.sendall(b"what comes with the error, ")
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLERR)]
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLIN)]
        polled.pair.rx.set_head(9999)
        polled.peer.sendall(b"and again")
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLERR)]
        assert epoll.poll(PATIENCE) == [(polled.fd, select.EPOLLIN)]
        assert polled.receive() == b"what comes with the error, and again"


@pytest.mark.parametrize("kind", ["poll", "epoll"])
def test_waiters_for_a_ring_are_woken_when_the_port_closes(kind: str) -> None:
    port = RawPort(8, 8, rings=2)
    ring = port.pairs[1].fd
    told: list[list[tuple[int, int]]] = []

    def wait() -> None:
        with select.epoll() as epoll:
            epoll.register(ring, select.EPOLLIN)
            waits = poller(ring, select.POLLIN)
            before = time.monotonic()
            told.append(waits.poll(PATIENCE * 1000) if kind == "poll" else epoll.poll(PATIENCE))
            assert time.monotonic() - before < NOT_THE_TIMEOUT

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(A_WHILE)
    assert not told
    port.memory.close()
    os.close(port.fd)
    waiting.join()
    assert told == [[(ring, select.POLLERR | select.POLLHUP)]]
    os.close(ring)
