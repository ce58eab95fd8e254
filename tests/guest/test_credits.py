"""SMIOC_CREDITS: a connection opens so many slots, then TCP's window holds its peer back."""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.guest.pattern import pattern
from tests.guest.raw import CLOSED, EOF, ERROR, WRITABLE
from tests.reset import reset_on_close
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.guest.attached import Attached
    from tests.guest.raw import Received

UNLIMITED = 0xFFFFFFFF
PATIENCE = 60.0
PAGE = 4096


def data_slots(two: Attached, count: int) -> list[bytes]:
    """Receive so many slots of data of the bad connection, and make sure that no more come."""
    deadline = time.monotonic() + PATIENCE
    found: list[bytes] = []
    while len(found) < count:
        assert time.monotonic() < deadline, len(found)
        found += [e[1] for e in two.port.receive() if e[0] == two.id and not e[2]]
    for _ in range(5):
        two.check_honest()
        found += [e[1] for e in two.port.receive() if e[0] == two.id and not e[2]]
    assert len(found) == count
    return found


def rest_of_it(two: Attached, size: int) -> bytes:
    deadline = time.monotonic() + PATIENCE
    found = b""
    while len(found) < size:
        assert time.monotonic() < deadline, len(found)
        found += b"".join(e[1] for e in two.port.receive() if e[0] == two.id and not e[2])
    return found


def events(two: Attached, last: int) -> list[Received]:
    deadline = time.monotonic() + PATIENCE
    found: list[Received] = []
    while not any(event[2] == last for event in found):
        assert time.monotonic() < deadline, found
        found += [e for e in two.port.receive() if e[0] == two.id and e[2] != WRITABLE]
    return found


def test_no_more_slots_than_credits(two: Attached) -> None:
    sent = pattern(0, 0, 10 * PAGE)
    two.port.credit(two.id, 2)
    two.peer.sendall(sent)
    got = b"".join(data_slots(two, 2))
    two.port.credit(two.id, 3)
    got += b"".join(data_slots(two, 3))
    two.port.credit(two.id, UNLIMITED)
    got += rest_of_it(two, len(sent) - len(got))
    assert got == sent


def test_credits_add_up_and_are_kept(two: Attached) -> None:
    two.port.credit(two.id, 1)
    two.port.credit(two.id, 1)
    sent = pattern(0, 0, 5 * PAGE)
    two.peer.sendall(sent)
    got = b"".join(data_slots(two, 2))
    two.port.credit(two.id, 0)
    assert data_slots(two, 0) == []
    two.port.credit(two.id, UNLIMITED)
    assert got + rest_of_it(two, len(sent) - len(got)) == sent


def test_no_credits_close_the_peers_window(two: Attached) -> None:
    two.port.credit(two.id, 0)
    two.peer.setblocking(False)
    sent = bytearray()

    def stuck() -> bool:
        try:
            while True:
                sent.extend(bytes(two.peer.send(bytes(65536))))
        except BlockingIOError:
            pass
        before = len(sent)
        time.sleep(0.5)
        try:
            sent.extend(bytes(two.peer.send(b"\0")))
        except BlockingIOError:
            return len(sent) == before
        return False

    eventually(stuck, lambda: len(sent))
    two.check_honest()
    two.port.credit(two.id, UNLIMITED)
    assert rest_of_it(two, len(sent)) == bytes(len(sent))


def test_other_connections_go_on(two: Attached) -> None:
    two.port.credit(two.id, 0)
    two.peer.sendall(pattern(0, 0, 20 * PAGE))
    for _ in range(20):
        two.check_honest()


def test_the_end_of_the_stream_needs_no_credit(two: Attached) -> None:
    two.port.credit(two.id, 0)
    two.peer.shutdown(socket.SHUT_WR)
    assert [event[2] for event in events(two, EOF)] == [EOF]


def test_the_end_comes_after_the_data_that_waits(two: Attached) -> None:
    two.port.credit(two.id, 0)
    two.peer.sendall(b"first")
    two.peer.shutdown(socket.SHUT_WR)
    assert data_slots(two, 0) == []
    two.port.credit(two.id, 1)
    assert [(event[1], event[2]) for event in events(two, EOF)] == [(b"first", 0), (b"", EOF)]


def test_a_reset_is_reported_at_once(two: Attached) -> None:
    two.port.credit(two.id, 0)
    two.peer.sendall(bytes(3 * PAGE))
    two.check_honest()
    reset_on_close(two.peer)
    two.peer.close()
    found = events(two, CLOSED)
    assert [(event[2], event[3]) for event in found] == [(ERROR, errno.ECONNRESET), (CLOSED, 0)]


def test_pausing_and_credits_are_two_things(two: Attached) -> None:
    two.port.credit(two.id, 4)
    two.port.pause(two.id)
    two.peer.sendall(b"data")
    assert data_slots(two, 0) == []
    two.port.pause(two.id, 0)
    assert data_slots(two, 1) == [b"data"]


def test_a_connection_that_is_not_there(two: Attached) -> None:
    with pytest.raises(OSError) as caught:
        two.port.credit(two.id + 1000, 1)
    assert caught.value.errno == errno.ENOENT


def test_many_are_not_mistaken_for_all(two: Attached) -> None:
    """Credits that would add up to the number for "unlimited" stay a number."""
    two.port.credit(two.id, 1)
    two.port.credit(two.id, UNLIMITED - 1)
    two.port.credit(two.id, 5)
    sent = pattern(0, 0, 3 * PAGE)
    two.peer.sendall(sent)
    assert rest_of_it(two, len(sent)) == sent
