"""NS_REPORT: the application is told when the peer has acknowledged a slot, and not before."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.guest.partial_slot import leave_a_rest
from tests.guest.pattern import pattern
from tests.guest.raw import ACKED, CLOSED, REPORT, SYNC_POLL, SYNC_TX, SYNC_WAIT, RawPort
from tests.guest.wire import connect_pair, peer_is_late_by, peer_loses
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from tests.guest.attached import Attached
    from tests.guest.raw import Received

PATIENCE = 60.0
LATE_MS = 300


def send(port: RawPort, id: int, *slots: tuple[bytes, int]) -> None:
    """Submit slots with their flags, in one sync; all must be accepted."""
    first = port.tx.head
    for k, (data, flags) in enumerate(slots):
        port.put((first + k) % port.tx.n, id, data, flags=flags)
    port.tx.set_head((first + len(slots)) % port.tx.n)
    port.sync(SYNC_TX)
    assert all(port.tx.slot((first + k) % port.tx.n).events == 0 for k in range(len(slots)))


def bytes_of(event: Received) -> int:
    count: int = struct.unpack("<Q", event[1])[0]
    return count


def acked_events(port: RawPort, id: int, wanted: int) -> list[int]:
    """Receive until an event says that so many bytes are acknowledged; what each said."""
    deadline = time.monotonic() + PATIENCE
    told: list[int] = []
    while not told or told[-1] < wanted:
        assert time.monotonic() < deadline, told
        events = port.receive(SYNC_POLL | SYNC_WAIT, deadline=time.monotonic() + 1)
        told += [bytes_of(event) for event in events if event[0] == id and event[2] == ACKED]
    return told


def test_it_comes_with_the_ack_and_not_before(two: Attached) -> None:
    with peer_is_late_by(LATE_MS):
        begin = time.monotonic()
        send(two.port, two.id, (b"abc", REPORT))
        assert receive_exactly(two.peer, 3) == b"abc"
        assert acked_events(two.port, two.id, 3) == [3]
        assert time.monotonic() - begin >= LATE_MS / 1000


@pytest.mark.parametrize("size", [1, 100, 4096])
def test_only_requested_slots_are_reported(two: Attached, size: int) -> None:
    for _ in range(3):
        send(two.port, two.id, (b"x" * size, 0))
    receive_exactly(two.peer, 3 * size)
    two.check_honest()
    send(two.port, two.id, (b"y" * size, REPORT))
    assert acked_events(two.port, two.id, 4 * size) == [4 * size]


def test_several_slots_are_reported_at_once(two: Attached) -> None:
    with peer_is_late_by(LATE_MS):
        send(two.port, two.id, *((b"z" * 50, REPORT) for _ in range(10)), (b"end", 0))
        told = acked_events(two.port, two.id, 500)
    assert len(told) <= 2
    assert told == sorted(set(told))


def test_each_slot_is_reported_in_the_end(two: Attached) -> None:
    """An event may count later slots, but each slot is counted by one."""
    total = 0
    for size in (1, 5000, 70, 4096, 4095):
        for at in range(0, size, 4096):
            piece = min(4096, size - at)
            send(two.port, two.id, (b"p" * piece, REPORT))
            total += piece
        receive_exactly(two.peer, size)
        assert acked_events(two.port, two.id, total)[-1] == total


def test_a_slot_that_tcp_takes_in_two_parts(two: Attached) -> None:
    """It counts when its last byte is acknowledged."""
    port = two.port
    stream = pattern(0, 0, 2_000_000)
    accepted = leave_a_rest(two, stream)
    receive_exactly(two.peer, accepted)
    send(port, two.id, (b"last", REPORT))
    assert receive_exactly(two.peer, 4) == b"last"
    assert acked_events(port, two.id, accepted + 4)[-1] == accepted + 4


def test_without_an_ack_there_is_no_event(two: Attached) -> None:
    with peer_loses(100):
        send(two.port, two.id, (b"lost?", REPORT))
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert not [e for e in two.port.receive() if e[0] == two.id]
            time.sleep(0.05)
    assert acked_events(two.port, two.id, 5) == [5]


def test_after_a_reset_only_closed_is_reported(two: Attached) -> None:
    with peer_loses(100):
        send(two.port, two.id, (b"gone", REPORT))
        two.sock.close()  # an orphan: its bytes may still be acknowledged
        events = [e for e in two.port.receive() if e[0] == two.id]
    assert [event[2] for event in events] == [CLOSED]


def test_pausing_does_not_hold_it_back(two: Attached) -> None:
    two.port.pause(two.id)
    two.peer.sendall(b"unread")
    send(two.port, two.id, (b"q", REPORT))
    assert acked_events(two.port, two.id, 1) == [1]


def test_bytes_from_before_the_attach_do_not_count() -> None:
    peer, sock = connect_pair()
    with RawPort(16, 16) as port, peer, sock, peer_is_late_by(LATE_MS):
        sock.sendall(b"o" * 1000)
        id = port.attach(sock)
        send(port, id, (b"new", REPORT))
        assert acked_events(port, id, 3) == [3]


def test_a_ring_without_room_tells_later(two: Attached) -> None:
    peer, sock = connect_pair()
    with RawPort(16, 4) as port, peer, sock:
        id = port.attach(sock)
        peer.sendall(bytes(4 * 4096))
        while port.rx.tail == port.rx.head or (port.rx.tail - port.rx.head) % port.rx.n < 3:
            port.sync()
        send(port, id, (b"r", REPORT))
        assert receive_exactly(peer, 1) == b"r"
        assert acked_events(port, id, 1) == [1]
