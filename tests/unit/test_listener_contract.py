# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""The contract of a listener that is attached to a port.

Held to several backends as ``test_port_contract.py`` is.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from stackmap import Connection, Event, Port
from tests.unit.link import (  # noqa: F401 (fixtures, used by name)
    PATIENCE,
    Link,
    Listening,
    link,
    listening,
    make_link,
    port,
    port_factory,
    reset,
    socket_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_listener_accepts_attached_connections(
    port: Port, listening: Callable[[], Listening]
) -> None:
    sock, connect = listening()
    with port.attach_listener(sock) as listener:
        links = []
        for number in range(20):
            peer = connect()
            peer.sendall(b"%02d, early " % number)
            links.append(Link(port, peer, listener.accept()))
            peer.sendall(b"and late")
        assert all(
            link.connection.sock.getpeername()[1] == link.peer.getsockname()[1] for link in links
        )
        deadline = time.monotonic() + PATIENCE
        while any(len(link.received()) < 18 for link in links):
            assert time.monotonic() < deadline
            for segment in port.exchange(0.05):
                for link in links:
                    link.take(segment)
        for number, link in enumerate(links):
            assert link.story == [b"%02d, early and late" % number]
            link.connection.write(b"bye %02d" % number)
            link.connection.close()
        port.exchange()
        for number, link in enumerate(links):
            assert link.peer.recv(6, socket.MSG_WAITALL) == b"bye %02d" % number
            assert link.peer.recv(1) == b""
            link.peer.close()


def test_what_is_asked_before_the_first_exchange_happens(
    port: Port, listening: Callable[[], Listening]
) -> None:
    sock, connect = listening()
    with port.attach_listener(sock) as listener:
        peer = connect()
        greeted = Link(port, peer, listener.accept())
        greeted.connection.write(b"welcome, ")
        greeted.connection.write(b"and farewell")
        greeted.connection.shutdown_write()
        greeted.hear()
        assert greeted.read_peer(21) == b"welcome, and farewell"
        assert peer.recv(1) == b""

        paused = Link(port, connect(), listener.accept())
        paused.connection.pause_reading()
        paused.peer.sendall(b"x" * 100)
        paused.connection.resume_reading()
        paused.until(lambda: paused.received() == b"x" * 100)

        aborted = Link(port, connect(), listener.accept())
        aborted.connection.abort()
        aborted.until_event(Event.CLOSED)
        with pytest.raises(ConnectionResetError):
            aborted.peer.recv(1)
        for link in (greeted, paused, aborted):
            link.peer.close()


def test_a_listener_can_be_watched(port: Port, listening: Callable[[], Listening]) -> None:
    sock, connect = listening()
    accepted = []
    with port.attach_listener(sock) as listener:
        port.watch(listener, lambda: accepted.append(listener.accept()))
        with connect() as peer:
            peer.sendall(b"hello")
            heard = b""
            deadline = time.monotonic() + PATIENCE
            while heard != b"hello":
                assert time.monotonic() < deadline
                heard += b"".join(bytes(segment.view) for segment in port.exchange(0.05))
        assert len(accepted) == 1
        port.unwatch(listener)


def test_what_is_no_listener_cannot_be_attached_as_one(
    port: Port, socket_pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    peer, sock = socket_pair()
    with closing(peer), closing(sock):
        with pytest.raises(OSError, match=r".") as caught:
            port.attach_listener(sock)
        assert caught.value.errno == errno.EINVAL
    with socket.socket(type=socket.SOCK_DGRAM) as udp, pytest.raises(OSError, match=r".") as caught:
        port.attach_listener(udp)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_closing_the_port_closes_its_listeners(
    port_factory: Callable[[], Port], listening: Callable[[], Listening]
) -> None:
    sock, _connect = listening()
    with port_factory() as port:
        port.attach_listener(sock)
    assert sock.fileno() == -1


def test_closing_the_port_closes_what_was_just_accepted(
    port_factory: Callable[[], Port], listening: Callable[[], Listening]
) -> None:
    sock, connect = listening()
    with port_factory() as port:
        listener = port.attach_listener(sock)
        peer = connect()
        accepted = listener.accept()
    with closing(peer):
        assert accepted.sock.fileno() == -1
        assert peer.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            accepted.write(b"too late")


@pytest.mark.parametrize("early", [b"", b"said before"])
def test_a_connection_that_is_reset_before_it_is_accepted(
    port: Port, listening: Callable[[], Listening], early: bytes
) -> None:
    """A port scan does that: nobody else notices, whichever way connections are attached."""
    by_hand, connect_by_hand = listening()
    sock, connect = listening()
    story: dict[Connection, list[tuple[bytes, Event, int]]] = {}
    with by_hand, port.attach_listener(sock) as listener:
        for connecting in (connect_by_hand, connect):
            peer = connecting()
            peer.sendall(early)
            reset(peer)
        time.sleep(0.1)
        port.watch(by_hand, lambda: story.update({port.attach(by_hand.accept()[0]): []}))
        port.watch(listener, lambda: story.update({listener.accept(): []}))
        lively = [connect_by_hand(), connect()]
        deadline = time.monotonic() + PATIENCE
        for peer in lively:
            peer.sendall(b"hello")
        while sum(len(told) for told in story.values()) < 2 * (2 + bool(early)) + 2:
            assert time.monotonic() < deadline, story
            for segment in port.exchange(0.05):
                told = (bytes(segment.view), segment.event, segment.errno)
                story[segment.connection].append(told)
        died = [(b"", Event.ERROR, errno.ECONNRESET), (b"", Event.CLOSED, 0)]
        if early:
            died.insert(0, (early, Event.NONE, 0))
        lives = [(b"hello", Event.NONE, 0)]
        assert sorted(story.values()) == sorted([died, died, lives, lives])
        assert sum(connection.sock.fileno() < 0 for connection in story) == 2
        for file in (by_hand, listener):
            port.unwatch(file)
        for peer in lively:
            peer.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
def test_a_callback_for_which_accept_fails_may_try_again(
    link: Link, listening: Callable[[], Listening], code: int
) -> None:
    """An exception of accept() ends the exchange, which loses nothing; its file stays readable."""
    sock, connect = listening()
    accepted: list[Connection] = []
    failures = 3

    def accept() -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(code, os.strerror(code))
        accepted.append(listener.accept())

    with link.port.attach_listener(sock) as listener, connect():
        link.port.watch(listener, accept)
        link.peer.sendall(b"meanwhile")
        raised = []
        deadline = time.monotonic() + PATIENCE
        while not (accepted and link.received() == b"meanwhile"):
            assert time.monotonic() < deadline
            try:
                link.hear(0.05)
            except OSError as failure:
                raised.append(failure.errno)
        assert raised == [code] * 3
        link.port.unwatch(listener)
