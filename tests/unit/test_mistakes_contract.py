# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""A program's own mistakes: told at once, in the same words on every backend.

Held to several backends as ``test_port_contract.py`` is.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from stackmap import Event, Port, errors
from tests.unit.link import (  # noqa: F401 (fixtures, used by name)
    PATIENCE,
    Listening,
    Pair,
    listening,
    port,
    port_factory,
    refuses,
    socket_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def attached_pair(port: Port, socket_pair: Callable[[], Pair]) -> Iterator[Pair]:
    """The peer's socket, and one that the port has."""
    peer, sock = socket_pair()
    port.attach(sock)
    with closing(peer):
        yield peer, sock


def test_a_listener_is_no_connection(port: Port, listening: Callable[[], Listening]) -> None:
    sock, _connect = listening()
    with (
        sock,
        refuses(errno.EINVAL, "a listening socket cannot be attached: use attach_listener()"),
    ):
        port.attach(sock)


def test_a_connection_is_no_listener(port: Port, socket_pair: Callable[[], Pair]) -> None:
    peer, sock = socket_pair()
    with (
        peer,
        sock,
        refuses(errno.EINVAL, "the socket is not listening: use attach() for a connection"),
    ):
        port.attach_listener(sock)


def test_a_socket_that_is_not_connected(port: Port) -> None:
    with socket.socket() as fresh, refuses(errno.ENOTCONN, "the socket is not connected"):
        port.attach(fresh)


def test_sockets_of_other_kinds(port: Port) -> None:
    here, there = socket.socketpair()
    with here, there, socket.socket(type=socket.SOCK_DGRAM) as udp:
        for other in (here, udp):
            for attach in (port.attach, port.attach_listener):
                with refuses(errno.EOPNOTSUPP, "only TCP sockets can be attached"):
                    attach(other)


def test_a_closed_socket(port: Port) -> None:
    sock = socket.socket()
    sock.close()
    for attach in (port.attach, port.attach_listener):
        with refuses(errno.EBADF, "the socket is closed"):
            attach(sock)


def test_attached_twice(
    port: Port, attached_pair: Pair, listening: Callable[[], Listening]
) -> None:
    _peer, sock = attached_pair
    with refuses(errno.EALREADY, "the socket is attached already"):
        port.attach(sock)
    with refuses(errno.EINVAL, "the socket is not listening: use attach() for a connection"):
        port.attach_listener(sock)
    listener, _connect = listening()
    port.attach_listener(listener)
    with refuses(errno.EALREADY, "the socket is attached already"):
        port.attach_listener(listener)


# ... of watching


def test_a_descriptor_is_watched_like_a_file(port: Port) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    seen: list[int] = []
    try:
        port.watch(fd, lambda: seen.append(os.eventfd_read(fd)))
        os.eventfd_write(fd, 3)
        port.exchange(PATIENCE)
        assert seen == [3]
        port.unwatch(fd)
        os.eventfd_write(fd, 4)
        port.exchange(0.05)
        assert seen == [3]
    finally:
        os.close(fd)


def test_watched_twice(port: Port) -> None:
    here, there = socket.socketpair()
    with here, there:
        port.watch(here, lambda: None)
        for again in (here, here.fileno()):
            with refuses(errno.EEXIST, f"descriptor {here.fileno()} is watched already"):
                port.watch(again, lambda: None)
        port.unwatch(here)
        port.watch(here, lambda: None)
        port.unwatch(here.fileno())


def test_unwatching_what_is_not_watched(port: Port) -> None:
    here, there = socket.socketpair()
    with here, there:
        for _ in range(2):
            with pytest.raises(ValueError, match=f"^descriptor {here.fileno()} is not watched$"):
                port.unwatch(here)
            port.watch(here, lambda: None)
            port.unwatch(here)


def test_unwatching_a_descriptor_that_was_closed(port: Port) -> None:
    fd = os.eventfd(0)
    port.watch(fd, lambda: None)
    os.close(fd)
    port.unwatch(fd)
    with pytest.raises(ValueError, match=f"^descriptor {fd} is not watched$"):
        port.unwatch(fd)


def test_files_that_nothing_waits_for(port: Port, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        sentence = (
            f"descriptor {file.fileno()} is a regular file or a folder: it is never waited for"
        )
        with refuses(errno.EPERM, sentence):
            port.watch(file, lambda: None)
        with pytest.raises(ValueError, match="is not watched"):
            port.unwatch(file)


def test_watching_a_closed_file(port: Port) -> None:
    here, there = socket.socketpair()
    fd = here.fileno()
    here.close()
    there.close()
    with pytest.raises(ValueError, match=r"^<socket\.socket \[closed\].*> is closed$"):
        port.watch(here, lambda: None)
    with pytest.raises(ValueError, match=r"^<socket\.socket \[closed\].*> is closed$"):
        port.unwatch(here)
    with pytest.raises(ValueError, match=f"^descriptor {fd} is closed$"):
        port.watch(fd, lambda: None)


# ... and of using what is closed


def test_everything_says_that_the_port_is_closed(
    port_factory: Callable[[], Port],
    socket_pair: Callable[[], Pair],
    listening: Callable[[], Listening],
) -> None:
    port = port_factory()
    port.close()
    peer, sock = socket_pair()
    listener, _connect = listening()
    with peer, sock, listener:
        attempts: list[Callable[[], object]] = [
            port.exchange,
            lambda: port.attach(sock),
            lambda: port.attach_listener(listener),
            lambda: port.watch(listener, lambda: None),
            lambda: port.unwatch(listener),
            port.fileno,
            port.flush,
            lambda: port.connect(("127.0.0.1", 9)),
        ]
        for attempt in attempts:
            with pytest.raises(ValueError, match=r"^\[Errno 9\] the port is closed$") as caught:
                attempt()
            assert isinstance(caught.value, errors.ClosedError)
        port.wakeup()
        assert port.closed
        assert "closed" in repr(port)
    port.stats()
    port.close()


def test_writing_after_the_own_end(port: Port, socket_pair: Callable[[], Pair]) -> None:
    peer, sock = socket_pair()
    with closing(peer):
        connection = port.attach(sock)
        connection.shutdown_write()
        with pytest.raises(BrokenPipeError, match="the program's own shutdown_write"):
            connection.write(b"more")
        connection.abort()
        while Event.CLOSED not in [segment.event for segment in port.exchange(PATIENCE)]:
            pass
