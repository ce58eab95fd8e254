# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""Signals while a port waits: their handlers run, and the wait goes on (PEP 475).

Held to several backends as ``test_port_contract.py`` is.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from stackmap import Port
from tests.guest.children import Child
from tests.unit.link import (  # noqa: F401 (fixtures, used by name)
    PATIENCE,
    PATTERN,
    Link,
    Listening,
    link,
    listening,
    make_link,
    port,
    port_factory,
    socket_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SocketPair = tuple[socket.socket, socket.socket]


class InterruptedByTestError(Exception):
    """An exception of a handler."""


@contextmanager
def handling(handler: Callable[[], object]) -> Iterator[None]:
    """Has SIGUSR1 handled."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def fail() -> None:
    """Handle a signal."""
    raise InterruptedByTestError


@contextmanager
def one_signal() -> Iterator[None]:
    """Sends this thread a signal after a moment."""
    sender = threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGUSR1])
    sender.start()
    try:
        yield
    finally:
        sender.join(PATIENCE)


@contextmanager
def signalled(pause: float, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Sends five signals to this thread, with pauses before them in seconds, and does a thing."""
    target = threading.get_ident()

    def send() -> None:
        for _ in range(5):
            time.sleep(pause)
            signal.pthread_kill(target, signal.SIGUSR1)
        time.sleep(pause)
        then()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join(PATIENCE)


@pytest.fixture(params=["alone", "watching"])
def waiting_port(request: pytest.FixtureRequest, port: Port) -> Iterator[Port]:
    """A port in both of its ways of waiting."""
    reader, writer = os.pipe()
    with open(reader, "rb") as file, open(writer, "wb"):
        if request.param == "watching":
            port.watch(file, lambda: None)
        yield port
        if request.param == "watching":
            port.unwatch(file)


def test_a_wait_goes_on_until_its_time_is_up(waiting_port: Port) -> None:
    handled: list[float] = []
    for _ in range(2):
        with handling(lambda: handled.append(time.monotonic())), signalled(0.05):
            start = time.monotonic()
            assert waiting_port.exchange(0.8) == []
            end = time.monotonic()
        assert end - start >= 0.8
        assert [moment for moment in handled if start < moment < end]


def test_a_wait_for_ever_ends_with_data(waiting_port: Port, link: Link) -> None:
    handled: list[None] = []
    for text in (b"first", b"second"):
        handled.clear()
        with (
            handling(lambda: handled.append(None)),
            signalled(0.05, partial(link.peer.sendall, text)),
        ):
            segments = waiting_port.exchange(None)
        assert [bytes(segment.view) for segment in segments] == [text]
        assert handled


def test_a_handler_that_raises_ends_the_wait(waiting_port: Port, link: Link) -> None:
    for number in range(2):
        with handling(fail), one_signal(), pytest.raises(InterruptedByTestError):
            waiting_port.exchange(None)
        link.connection.write(b"%d" % number)
    link.peer.sendall(b"after it")
    link.until(lambda: link.received() == b"after it")
    assert link.read_peer(2) == b"01"


@pytest.mark.parametrize("watching", [False, True])
def test_what_came_with_a_signal_whose_handler_raises_is_not_lost(
    port_factory: Callable[[], Port], socket_pair: Callable[[], SocketPair], watching: bool
) -> None:
    """Both come while the process is stopped."""
    peer, sock = socket_pair()
    sizes = (10, 3000, 100_000)

    def work(tell: Callable[[], object]) -> None:
        with port_factory() as port, handling(fail):
            port.attach(sock)
            if watching:
                port.watch(peer, lambda: None)
            for size in sizes:
                tell()
                raised = 0
                got = b""
                while len(got) < size or not raised:
                    try:
                        segments = port.exchange(None)
                    except InterruptedByTestError:
                        raised += 1
                        continue
                    got += b"".join(bytes(segment.view) for segment in segments)
                assert (got, raised) == (PATTERN[:size], 1)

    with closing(peer), closing(sock), Child(work) as child:
        for size in sizes:
            child.await_word()
            child.await_sleep()
            os.kill(child.pid, signal.SIGSTOP)
            child.await_sleep("T")
            peer.sendall(PATTERN[:size])
            time.sleep(0.1)
            os.kill(child.pid, signal.SIGUSR1)
            os.kill(child.pid, signal.SIGCONT)
        assert child.await_end() == 0


@pytest.mark.parametrize("watching", [False, True])
def test_being_stopped_and_continued_ends_no_wait(
    port_factory: Callable[[], Port], socket_pair: Callable[[], SocketPair], watching: bool
) -> None:
    peer, sock = socket_pair()

    def work(tell: Callable[[], object]) -> None:
        with port_factory() as port:
            port.attach(sock)
            if watching:
                port.watch(peer, lambda: None)
            for number in range(2):
                tell()
                (segment,) = port.exchange(PATIENCE)
                assert bytes(segment.view) == b"wait %d" % number

    with closing(peer), closing(sock), Child(work) as child:
        for number in range(2):
            child.await_word()
            for _ in range(3):
                child.await_sleep()
                os.kill(child.pid, signal.SIGSTOP)
                child.await_sleep("T")
                os.kill(child.pid, signal.SIGCONT)
            child.await_sleep()
            peer.sendall(b"wait %d" % number)
        assert child.await_end() == 0


def test_signals_all_the_while_harm_no_stream(link: Link) -> None:
    handled = 0
    sent = 0
    answer = bytearray()
    target = threading.get_ident()
    done = threading.Event()

    def count() -> None:
        nonlocal handled
        handled += 1

    def send_signals() -> None:
        while not done.wait(0.001):
            signal.pthread_kill(target, signal.SIGUSR1)

    link.peer.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    with handling(count):
        sender = threading.Thread(target=send_signals)
        sender.start()
        try:
            while len(answer) < len(PATTERN):
                assert time.monotonic() < deadline
                with suppress(BlockingIOError):
                    sent += link.peer.send(PATTERN[sent : sent + 10_000])
                for segment in link.port.exchange(0.01):
                    if not segment.event:
                        link.connection.write(segment.view)
                with suppress(BlockingIOError):
                    answer += link.peer.recv(1 << 20)
        finally:
            done.set()
            sender.join(PATIENCE)
    assert bytes(answer) == PATTERN
    assert handled


def test_a_wait_for_a_connection_goes_on(port: Port, listening: Callable[[], Listening]) -> None:
    sock, connect = listening()
    peers: list[socket.socket] = []
    handled: list[None] = []
    with (
        port.attach_listener(sock) as listener,
        handling(lambda: handled.append(None)),
        signalled(0.05, lambda: peers.append(connect())),
    ):
        connection = listener.accept()
    assert handled
    Link(port, peers[0], connection).until(lambda: connection.id != 0)
    peers[0].close()


def test_a_handler_that_raises_ends_a_wait_for_a_connection(
    port: Port, listening: Callable[[], Listening]
) -> None:
    sock, connect = listening()

    with port.attach_listener(sock) as listener:
        with handling(fail), one_signal(), pytest.raises(InterruptedByTestError):
            listener.accept()
        with connect() as peer:
            link = Link(port, peer, listener.accept())
            peer.sendall(b"hello")
            link.until(lambda: link.received() == b"hello")
