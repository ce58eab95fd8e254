"""Attaching and detaching lose no byte and double none, whatever is under way."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from stackmap import Event, RingPort
from tests.guest.partial_slot import bytes_in_tcp, leave_a_rest
from tests.guest.raw import CLOSED, EOF, REFUSED, RawPort
from tests.guest.tcp_info import tcp_info
from tests.guest.wire import NIC, connect_pair, connect_pair_from_here, peer_is_late_by, peer_loses
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guest.attached import Attached

PATIENCE = 60.0
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000


def noise(seed: int, size: int) -> bytes:
    """Bytes that repeat nowhere."""
    return random.Random(seed).randbytes(size)


class FarEnd(threading.Thread):
    """Sends one stream and reads the other, in pieces of random size, until the other ends."""

    def __init__(self, peer: socket.socket, outgoing: bytes) -> None:
        super().__init__(daemon=True)
        self.received = bytearray()
        self._peer = peer
        self._outgoing = outgoing
        self._random = random.Random(7)

    def run(self) -> None:
        self._peer.setblocking(False)
        sent = 0
        while True:
            with suppress(BlockingIOError):
                piece = self._outgoing[sent : sent + self._random.randrange(1, 30_000)]
                sent += self._peer.send(piece) if piece else 0
            try:
                data = self._peer.recv(self._random.randrange(1, 60_000))
            except BlockingIOError:
                time.sleep(0.001)
                continue
            if not data:
                break
            self.received += data
        self._peer.setblocking(True)
        self._peer.sendall(self._outgoing[sent:])
        self._peer.close()


class NearEnd:
    """Our end of both streams: by the rings while attached, by the socket otherwise."""

    def __init__(self, port: RawPort, sock: socket.socket, outgoing: bytes) -> None:
        self.port = port
        self.sock = sock
        self.outgoing = outgoing
        self.sent = 0
        self.received = bytearray()
        self.id = 0
        self._random = random.Random(8)
        sock.setblocking(False)

    @property
    def done(self) -> bool:
        return self.sent == len(self.outgoing)

    def step(self) -> None:
        """Send a little and receive what there is."""
        if self.id:
            self._send_by_ring()
            self._take(self.port.receive())
        else:
            with suppress(BlockingIOError):
                end = self.sent + self._random.randrange(1, 20_000)
                self.sent += self.sock.send(self.outgoing[self.sent : end])
            with suppress(BlockingIOError):
                self.received += self.sock.recv(65536)

    def _send_by_ring(self) -> None:
        ring = self.port.tx
        first = ring.head
        sizes: list[int] = []
        at = self.sent
        for _ in range(min(self._random.randrange(1, 9), (ring.tail - first) % ring.n)):
            piece = self.outgoing[at : at + self._random.randrange(1, 4097)]
            if not piece:
                break
            self.port.put(first + len(sizes), self.id, piece)
            sizes.append(len(piece))
            at += len(piece)
        ring.set_head((first + len(sizes)) % ring.n)
        self.port.sync_all()
        refused = [bool(ring.slot(first + k).events & REFUSED) for k in range(len(sizes))]
        assert refused == sorted(refused)
        self.sent += sum(size for size, no in zip(sizes, refused, strict=True) if not no)

    def _take(self, slots: list[tuple[int, bytes, int, int]]) -> bool:
        """Keep what was received; True if the last slot was CLOSED."""
        events = [event for id, _data, event, _code in slots if id == self.id]
        assert CLOSED not in events[:-1]
        self.received += b"".join(data for id, data, _event, _code in slots if id == self.id)
        return CLOSED in events

    def attach(self) -> None:
        self.id = self.port.attach(self.sock)

    def detach(self) -> None:
        self.port.detach(self.id)
        deadline = time.monotonic() + PATIENCE
        while not self._take(self.port.receive()):
            assert time.monotonic() < deadline
        self.id = 0

    def finish(self) -> None:
        """Read until the other end closes; the connection is detached."""
        self.sock.settimeout(PATIENCE)
        self.sock.shutdown(socket.SHUT_WR)
        while data := self.sock.recv(65536):
            self.received += data


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("connect", "family", "slots"),
    [
        (connect_pair, socket.AF_INET, 4),
        (connect_pair_from_here, socket.AF_INET6, 0),
        pytest.param(connect_pair, socket.AF_INET, 0, marks=pytest.mark.long),
        pytest.param(connect_pair_from_here, socket.AF_INET6, 4, marks=pytest.mark.long),
    ],
)
def test_detach_in_the_middle_of_both_streams(
    connect: Callable[[int], tuple[socket.socket, socket.socket]], family: int, slots: int
) -> None:
    """A hundred changes between ring and socket at random points of both streams."""
    there, back = noise(1, 3 << 20), noise(2, 3 << 20)
    peer, sock = connect(family)
    far = FarEnd(peer, back)
    far.start()
    changes = random.Random(3)
    # ACKs come late enough for something to be under way
    with RawPort(slots, slots) as port, closing(sock), peer_is_late_by(2):
        near = NearEnd(port, sock, there)
        pinned = detached = 0
        while not near.done or detached < 100:
            near.attach()
            for _ in range(changes.randrange(15)):
                near.step()
            pinned += port.stats()["pinned"] > 0
            near.detach()
            detached += 1
            for _ in range(changes.randrange(15)):
                near.step()
        near.finish()
        far.join(PATIENCE)
        assert bytes(far.received) == there
        assert bytes(near.received) == back
        assert pinned, "detaching always came when nothing was under way"
        stats = port.stats()
        assert (stats["bad_slots"], stats["bad_rings"], stats["connections"]) == (0, 0, 0)


def test_detach_with_the_rest_of_a_slot(two: Attached) -> None:
    """TCP took part of the last slot only: the rest goes ahead of what the socket sends."""
    port = two.port
    stream = noise(4, 1 << 20)
    accepted = leave_a_rest(two, stream)
    port.detach(two.id)
    assert bytes_in_tcp(two.sock) == accepted

    def send_the_rest() -> None:
        two.sock.sendall(stream[accepted:])
        two.sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send_the_rest)
    sender.start()
    got = b""
    while data := two.peer.recv(65536):
        got += data
    sender.join()
    assert got == stream


def test_detach_with_more_in_tcp_than_the_ring_holds() -> None:
    stream = noise(5, 100_000)
    with RawPort(rx_slots=4) as port:
        peer, sock = connect_pair()
        near = NearEnd(port, sock, b"")
        near.attach()
        peer.sendall(stream)
        peer.close()
        time.sleep(0.2)
        near.detach()
        assert len(near.received) <= 4 * 4096
        sock.settimeout(PATIENCE)
        while data := sock.recv(65536):
            near.received += data
        sock.close()
    assert bytes(near.received) == stream


def test_detach_while_paused(two: Attached) -> None:
    two.port.pause(two.id)
    two.peer.sendall(b"for the socket")
    time.sleep(0.1)
    two.port.detach(two.id)
    assert two.sock.recv(100) == b"for the socket"


def test_detach_after_the_end(two: Attached) -> None:
    """EOF was an event already, and the socket says it too."""
    two.peer.sendall(b"last words")
    two.peer.shutdown(socket.SHUT_WR)
    story: list[tuple[bytes, int]] = []
    deadline = time.monotonic() + PATIENCE
    while (b"", EOF) not in story:
        assert time.monotonic() < deadline
        story += [(data, event) for id, data, event, _code in two.port.receive() if id == two.id]
    assert story == [(b"last words", 0), (b"", EOF)]
    two.port.detach(two.id)
    assert two.sock.recv(100) == b""
    two.sock.sendall(b"still sending")
    assert two.peer.recv(100) == b"still sending"


def test_sending_without_a_copy_has_to_wait_for_what_the_port_has_sent(two: Attached) -> None:
    """TCP does not put pages of two owners into one segment, and says ENOBUFS."""
    port = two.port
    stream = noise(12, 8 * 4096)
    two.sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    with peer_loses(100):
        for at in range(0, len(stream), 4096):
            port.send(two.id, stream[at : at + 4096])
        assert tcp_info(two.sock)["bytes_notsent"], "the last segment is not TCP's to add to"
        port.detach(two.id)
        with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
            two.sock.send(b"too early", MSG_ZEROCOPY)
    assert receive_exactly(two.peer, len(stream)) == stream
    assert two.sock.send(b"now it can", MSG_ZEROCOPY) == 10
    assert receive_exactly(two.peer, 10) == b"now it can"


def test_a_hundred_cycles_over_two_ports(two: Attached) -> None:
    """A connection moves between two ports; its ids never come again."""
    two.port.detach(two.id)
    ids = {two.port: {two.id}}
    with RawPort(16, 16) as other:
        ids[other] = set()
        for number in range(100):
            port = (two.port, other)[number % 2]
            id = port.attach(two.sock)
            assert id not in ids[port]
            ids[port].add(id)
            port.send(id, b"%04d" % number)
            assert receive_exactly(two.peer, 4) == b"%04d" % number
            two.peer.sendall(b"%04d" % number)
            time.sleep(0.001 * (number % 3))
            port.detach(id)
            story: list[tuple[bytes, int]] = []
            while CLOSED not in [event for _data, event in story]:
                story += [(d, e) for i, d, e, _code in port.receive() if i == id]
            assert story.pop() == (b"", CLOSED)
            by_ring = b"".join(data for data, _event in story)
            left = 4 - len(by_ring)
            by_socket = two.sock.recv(left, socket.MSG_WAITALL) if left else b""
            assert by_ring + by_socket == b"%04d" % number
        assert other.stats()["connections"] == 0
        assert other.stats()["pinned"] == 0


def test_the_library_detaches_what_it_has_sent() -> None:
    """detach() refuses while the library holds bytes of its own, and then loses none."""
    stream = noise(6, 2 << 20)
    peer, sock = connect_pair()
    with RingPort(NIC) as port, closing(peer), closing(sock):
        connection = port.attach(sock)
        connection.write(stream)
        port.exchange()
        assert connection.pending
        with pytest.raises(BlockingIOError, match="unsent"):
            port.detach(connection)
        got = bytearray()
        peer.setblocking(False)
        events = Event.NONE
        deadline = time.monotonic() + PATIENCE
        attached = True
        while attached:
            assert time.monotonic() < deadline
            with suppress(BlockingIOError):
                got += peer.recv(1 << 20)
            for segment in port.exchange(0.01):
                events |= segment.event
            if not connection.pending:
                with suppress(BlockingIOError):  # the ring may have stopped for want of a buffer
                    port.detach(connection)
                    attached = False
        assert events is Event.WRITABLE
        with pytest.raises(BrokenPipeError):
            connection.write(b"too late")
        sock.sendall(b"by the socket")
        sock.shutdown(socket.SHUT_WR)
        peer.settimeout(PATIENCE)
        while data := peer.recv(1 << 20):
            got += data
        assert bytes(got) == stream + b"by the socket"
