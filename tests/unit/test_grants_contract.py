# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""The contract of segments that are granted to a connection.

Held to several backends as ``test_port_contract.py`` is.
"""

from __future__ import annotations

import socket
import threading
import time

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


def granted(link: Link, count: int) -> list[bytes]:
    """Receive so many segments of data, and make sure that no more come."""
    found: list[bytes] = []

    def take(timeout: float) -> None:
        for segment in link.port.exchange(timeout):
            assert segment.connection is link.connection
            assert not segment.event
            found.append(bytes(segment.view))

    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline, len(found)
        take(0.05)
    for _ in range(10):
        take(0.01)
    assert len(found) == count
    return found


def test_no_more_segments_than_granted(link: Link) -> None:
    link.connection.grant(2)
    sender = threading.Thread(target=link.peer.sendall, args=(PATTERN,))
    sender.start()
    got = b"".join(granted(link, 2))
    link.connection.grant(1)
    got += b"".join(granted(link, 1))
    link.connection.grant(None)
    link.until(lambda: len(got) + len(link.received()) == len(PATTERN))
    sender.join()
    assert got + link.received() == PATTERN


def test_grants_add_up(link: Link) -> None:
    link.connection.grant(0)
    link.connection.grant(1)
    link.connection.grant(1)
    link.peer.sendall(b"one")
    assert granted(link, 1) == [b"one"]
    link.peer.sendall(b"two")
    assert granted(link, 1) == [b"two"]
    link.peer.sendall(b"three")
    assert granted(link, 0) == []
    link.connection.grant(1)
    assert granted(link, 1) == [b"three"]


def test_the_end_of_the_stream_needs_no_grant(link: Link) -> None:
    link.connection.grant(0)
    link.peer.shutdown(socket.SHUT_WR)
    link.until_event(Event.EOF)
    assert link.events() == [Event.EOF]


def test_the_end_waits_for_the_data_before_it(link: Link) -> None:
    link.connection.grant(0)
    link.peer.sendall(b"first")
    link.peer.shutdown(socket.SHUT_WR)
    assert granted(link, 0) == []
    link.connection.grant(1)
    link.until_event(Event.EOF)
    assert link.story == [b"first", (Event.EOF, 0)]


def test_a_failure_is_told_without_a_grant(link: Link) -> None:
    link.connection.grant(0)
    link.peer.sendall(b"unread")
    assert granted(link, 0) == []
    reset(link.peer)
    link.until_event(Event.CLOSED)
    assert link.events() == [Event.ERROR, Event.CLOSED]


def test_writing_needs_no_grant(link: Link) -> None:
    link.connection.grant(0)
    link.peer.sendall(b"unread")
    written = link.fill()
    link.read_peer(written)
    link.until_event(Event.WRITABLE)
    link.connection.grant(None)
    link.until(lambda: link.received() == b"unread")


def test_pausing_holds_granted_segments_back(link: Link) -> None:
    link.connection.grant(5)
    link.connection.pause_reading()
    link.peer.sendall(b"data")
    assert granted(link, 0) == []
    link.connection.resume_reading()
    assert granted(link, 1) == [b"data"]


def test_a_grant_is_not_negative(link: Link) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        link.connection.grant(-1)
