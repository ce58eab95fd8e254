# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""The contract of writes that report their acknowledgement.

Held to several backends as ``test_port_contract.py`` is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from stackmap import Event
from tests.unit.link import (  # noqa: F401 (fixtures, used by name)
    PATIENCE,
    PATTERN,
    Link,
    link,
    make_link,
    port,
    port_factory,
    reset,
    socket_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_report_comes_when_the_peer_has_the_bytes(link: Link) -> None:
    link.connection.write(b"abc", report=True)
    assert link.read_peer(3) == b"abc"
    link.until_event(Event.ACKED)
    assert link.connection.bytes_acked == link.connection.bytes_written == 3
    assert link.events() == [Event.ACKED]


def test_without_being_asked_for_there_is_no_report(link: Link) -> None:
    link.connection.write(b"abc")
    link.hear()
    link.connection.write(b"d", report=True)
    link.until_event(Event.ACKED)
    assert link.connection.bytes_acked == 4
    link.connection.write(b"efg")
    link.read_peer(7)
    for _ in range(10):
        link.hear(0.01)
    assert link.events().count(Event.ACKED) == 1
    assert link.connection.bytes_acked == 4


def test_each_write_is_reported_in_the_end(link: Link) -> None:
    total = 0
    for size in (1, 100, 5000, 4096, 70_000, 3):
        link.connection.write(PATTERN[:size], report=True)
        link.connection.write(b"!", report=True)
        total += size + 1
        link.read_peer(size + 1)
        link.until(lambda: link.connection.bytes_acked == link.connection.bytes_written)
        assert link.connection.bytes_acked == total
    assert set(link.events()) <= {Event.ACKED, Event.WRITABLE}


def test_a_queued_write_is_reported_when_it_was_sent(link: Link) -> None:
    written = link.fill()
    link.connection.write(b"end", report=True)
    assert link.connection.pending
    link.hear()
    assert link.connection.bytes_acked == 0
    link.read_peer(written + 3)
    link.until(lambda: link.connection.bytes_acked == written + 3)
    assert link.connection.bytes_acked == link.connection.bytes_written


def test_an_empty_write_cannot_be_reported(link: Link) -> None:
    with pytest.raises(ValueError, match="no byte of an empty write"):
        link.connection.write(b"", report=True)


def test_a_reset_is_no_report(link: Link) -> None:
    link.fill()
    link.connection.write(b"never", report=True)
    reset(link.peer)
    link.until_event(Event.CLOSED)
    assert link.events()[-2:] == [Event.ERROR, Event.CLOSED]
    assert link.connection.bytes_acked < link.connection.bytes_written


def test_reading_goes_on_beside_reports(link: Link) -> None:
    for number in range(20):
        link.connection.write(b"ping", report=True)
        link.peer.sendall(b"pong")
        link.read_peer(4)
        link.until(lambda: link.connection.bytes_acked == 4 * (number + 1))  # noqa: B023
    link.until(lambda: len(link.received()) == 80)
    assert link.received() == b"pong" * 20


def test_forwarded_bytes_are_counted(make_link: Callable[[], Link]) -> None:
    one, other = make_link(), make_link()
    one.peer.sendall(b"f" * 3000)
    forwarded = 0
    deadline = time.monotonic() + PATIENCE
    while forwarded < 3000:
        assert time.monotonic() < deadline
        for segment in one.port.exchange(0.05):
            forwarded += len(segment.view)
            other.connection.forward(segment)
    assert other.connection.bytes_written == 3000
    other.connection.write(b"!", report=True)
    other.read_peer(3001)
    other.until(lambda: other.connection.bytes_acked == 3001)
