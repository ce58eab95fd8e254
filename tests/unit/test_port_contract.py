"""The contract of every backend (``stackmap/_port.py``), as tests over two fixtures.

To hold another backend to it, import everything from here into a module that has fixtures of its
own with these names.
"""

from __future__ import annotations

import collections
import errno
import fcntl
import itertools
import os
import pickle
import re
import socket
import threading
import time
from contextlib import closing, suppress
from termios import FIONREAD
from typing import TYPE_CHECKING, Any

import pytest

from stackmap import Connection, Event, Port, Segment, SocketPort, errors
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 100.0
PATTERN = bytes(range(251)) * 4096


@pytest.fixture
def port_factory() -> Callable[[], Port]:
    """Makes ports of the backend under test."""
    return SocketPort


@pytest.fixture
def socket_pair() -> Callable[[], tuple[socket.socket, socket.socket]]:
    """Makes established connections; the first socket is the peer's, the second is for a port."""

    def connect() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            accepted, _address = listener.accept()
        peer.settimeout(PATIENCE)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer, accepted

    return connect


@pytest.fixture
def listening() -> Callable[[], tuple[socket.socket, Callable[[], socket.socket]]]:
    """Makes listening sockets, each with a function that connects to it."""

    def listen() -> tuple[socket.socket, Callable[[], socket.socket]]:
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        return listener, lambda: socket.create_connection(address, PATIENCE)

    return listen


class Link:
    """An attached connection and its peer, and everything the port said about it so far."""

    def __init__(self, port: Port, peer: socket.socket, connection: Connection) -> None:
        self.port = port
        self.peer = peer
        self.connection = connection
        #: Received bytes and events in order; adjacent bytes are joined.
        self.story: list[bytes | tuple[Event, int]] = []

    def hear(self, timeout: float = 0.0) -> None:
        """Exchange once."""
        for segment in self.port.exchange(timeout):
            self.take(segment)

    def take(self, segment: Segment) -> None:
        if segment.connection is not self.connection:
            return
        if segment.event:
            self.story.append((segment.event, segment.errno))
        elif self.story and isinstance(self.story[-1], bytes):
            self.story[-1] += bytes(segment.view)
        else:
            self.story.append(bytes(segment.view))

    def until(self, done: Callable[[], bool]) -> None:
        """Exchange until ``done``."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, (
                f"still waiting, after {self.summary()}{self.state()}"
            )
            self.hear(0.05)

    def until_event(self, event: Event) -> None:
        self.until(lambda: event in self.events())

    def events(self) -> list[Event]:
        return [entry[0] for entry in self.story if not isinstance(entry, bytes)]

    def received(self) -> bytes:
        return b"".join(entry for entry in self.story if isinstance(entry, bytes))

    def summary(self) -> list[object]:
        return [f"{len(e)} bytes" if isinstance(e, bytes) else e for e in self.story]

    def state(self) -> str:
        """Return where bytes may be, for a test that fails."""
        lines = [repr(self.connection), f"{self.connection.unsent} unsent", str(self.port.stats())]
        with suppress(AttributeError, OSError):  # only rings have it
            lines.append(str(self.connection.tcp_state()))  # type: ignore[attr-defined]
        for sock in (self.connection.sock, self.peer):
            with suppress(OSError):
                lines.append(f"unread: {fcntl.ioctl(sock, FIONREAD, bytes(4)).hex()}")
                lines.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256).hex(" ", 4))
        return "\n".join(("", *lines))

    def read_peer(self, size: int) -> bytes:
        """Read exactly ``size`` bytes on the peer's side, while the port goes on."""
        self.peer.setblocking(False)
        data = bytearray()

        def all_there() -> bool:
            while len(data) < size:
                try:
                    got = self.peer.recv(min(1 << 20, size - len(data)))
                except BlockingIOError:
                    return False
                assert got, f"the peer saw the end after {len(data)} bytes"
                data.extend(got)
            return True

        self.until(all_there)
        self.peer.settimeout(PATIENCE)
        return bytes(data)

    def fill(self) -> int:
        """Write until the backend cannot take more; returns how many bytes were written."""
        written = 0
        while self.connection.pending < 4 << 20:
            self.connection.write(PATTERN)
            written += len(PATTERN)
            self.hear()
            assert written < 1 << 30
        return written


def reset(peer: socket.socket) -> None:
    """Close with RST."""
    reset_on_close(peer)
    peer.close()


@pytest.fixture
def port(port_factory: Callable[[], Port]) -> Iterator[Port]:
    with port_factory() as opened:
        yield opened


@pytest.fixture
def make_link(
    port: Port, socket_pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> Iterator[Callable[[], Link]]:
    links = []

    def make() -> Link:
        peer, sock = socket_pair()
        links.append(Link(port, peer, port.attach(sock)))
        return links[-1]

    yield make
    for link in links:
        link.peer.close()


@pytest.fixture
def link(make_link: Callable[[], Link]) -> Link:
    return make_link()


# -- data --


def test_data_arrives_in_order(link: Link) -> None:
    for start in range(0, len(PATTERN), 50_000):
        link.peer.sendall(PATTERN[start : start + 50_000])
        link.hear()
    link.until(lambda: len(link.received()) >= len(PATTERN))
    assert link.story == [PATTERN]


def test_bytes_that_came_before_attaching_are_first(
    port: Port, socket_pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    peer, sock = socket_pair()
    with closing(peer):
        peer.sendall(b"early ")
        time.sleep(0.05)
        link = Link(port, peer, port.attach(sock))
        peer.sendall(b"late")
        link.until(lambda: len(link.received()) == 10)
        assert link.story == [b"early late"]


def test_written_data_reaches_the_peer_in_order(link: Link) -> None:
    link.connection.write(b"one ")
    link.connection.writelines([b"two ", bytearray(b"three "), memoryview(b"four")])
    assert link.read_peer(18) == b"one two three four"


def test_written_data_is_copied(link: Link) -> None:
    data = bytearray(b"before")
    link.connection.write(data)
    data[:] = b"after!"
    assert link.read_peer(6) == b"before"


def test_a_view_of_larger_items_is_sent_as_bytes(link: Link) -> None:
    """Also what is sent in parts, and what waits in the queue."""
    data = PATTERN[: len(PATTERN) & ~7]
    written = 0
    while link.connection.pending < 4 << 20:
        link.connection.write(memoryview(data).cast("Q"))
        written += len(data)
        link.hear()
        assert written < 1 << 30
    link.connection.write(memoryview(data).cast("B", (len(data) // 4, 4)))
    assert link.read_peer(written + len(data)) == data * (written // len(data) + 1)
    assert link.connection.pending == 0


def test_echo_of_a_large_stream(link: Link) -> None:
    total = 0
    expected = PATTERN * 3
    sent = 0
    answer = bytearray()
    link.peer.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while len(answer) < len(expected):
        assert time.monotonic() < deadline
        if sent < len(expected):
            with suppress(BlockingIOError):
                sent += link.peer.send(expected[sent : sent + 100_000])
        for segment in link.port.exchange(0.001):
            if not segment.event:
                total += len(segment.view)
                segment.connection.write(segment.view)
        with suppress(BlockingIOError):
            answer += link.peer.recv(1 << 20)
    assert bytes(answer) == expected
    assert total == len(expected)


def test_forwarding_sends_what_was_received(make_link: Callable[[], Link]) -> None:
    there, back = make_link(), make_link()
    there.peer.setblocking(False)
    sizes = itertools.cycle((1, 300, 512, 513, 2048, 2049, 4096, 50_000))
    sent = 0
    answer = bytearray()
    back.peer.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while len(answer) < len(PATTERN):
        assert time.monotonic() < deadline
        with suppress(BlockingIOError):
            if sent < len(PATTERN):
                sent += there.peer.send(PATTERN[sent : sent + next(sizes)])
        for segment in there.port.exchange(0.001):
            if not segment.event:
                back.connection.forward(segment)
                with pytest.raises(ValueError, match="released"):
                    back.connection.forward(segment)
        with suppress(BlockingIOError):
            answer += back.peer.recv(1 << 20)
    assert bytes(answer) == PATTERN


def test_forwarding_and_writing_keep_their_order(link: Link) -> None:
    link.peer.sendall(PATTERN[:10_000])
    expected = b""
    received = 0
    deadline = time.monotonic() + PATIENCE
    while received < 10_000:
        assert time.monotonic() < deadline
        for segment in link.port.exchange(0.01):
            received += len(segment.view)
            expected += b"<" + bytes(segment.view) + b">"
            link.connection.write(b"<")
            link.connection.forward(segment)
            link.connection.write(b">")
    assert link.read_peer(len(expected)) == expected


def test_forwarding_after_the_end(link: Link) -> None:
    link.peer.sendall(PATTERN[:4000])
    segment = one_segment(link)
    link.connection.shutdown_write()
    with pytest.raises(BrokenPipeError):
        link.connection.forward(segment)


def test_kept_payload_outlives_exchanges(link: Link) -> None:
    kept = []
    for size in (1, 600, 4000):
        link.peer.sendall(PATTERN[:size])
        segment = one_segment(link)
        kept.append(link.port.keep(segment))
        with pytest.raises(ValueError, match="released"):
            bytes(segment.view)
    for _ in range(3):
        link.hear()
    assert [bytes(k.view) for k in kept] == [PATTERN[:size] for size in (1, 600, 4000)]
    assert all(k.view.readonly and k.connection is link.connection for k in kept)
    link.connection.forward(kept[1])
    assert link.read_peer(600) == PATTERN[:600]
    for k in kept:
        k.release()
        k.release()
        with pytest.raises(ValueError, match="released"):
            bytes(k.view)


# -- listeners --


Listening = tuple[socket.socket, "Callable[[], socket.socket]"]


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


# -- the end, in all its forms --


def test_eof_follows_the_data_and_sending_goes_on(link: Link) -> None:
    link.peer.sendall(PATTERN[:100_000])
    link.peer.shutdown(socket.SHUT_WR)
    link.until_event(Event.EOF)
    assert link.story == [PATTERN[:100_000], (Event.EOF, 0)]
    link.connection.write(b"still here")
    assert link.read_peer(10) == b"still here"
    assert link.events() == [Event.EOF]


def test_fin_riding_on_data(link: Link) -> None:
    link.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    link.peer.send(b"last words")
    link.peer.shutdown(socket.SHUT_WR)
    link.until_event(Event.EOF)
    assert link.story == [b"last words", (Event.EOF, 0)]


def test_reset_by_the_peer(link: Link) -> None:
    reset(link.peer)
    link.until_event(Event.CLOSED)
    assert link.story == [(Event.ERROR, errno.ECONNRESET), (Event.CLOSED, 0)]


def test_writing_to_a_reset_connection_is_no_error(link: Link) -> None:
    reset(link.peer)
    time.sleep(0.05)
    for _ in range(3):
        link.connection.write(b"into the void")
    link.connection.shutdown_write()
    link.until_event(Event.CLOSED)
    link.connection.close()
    link.connection.abort()
    assert link.events() == [Event.ERROR, Event.CLOSED]
    assert link.story[0] in ((Event.ERROR, errno.ECONNRESET), (Event.ERROR, errno.EPIPE))
    assert link.connection.pending == 0


def test_answering_what_came_before_a_reset_is_no_error(link: Link) -> None:
    """The application answers before it sees that the connection has failed."""
    link.peer.sendall(PATTERN[:3000])
    reset(link.peer)
    time.sleep(0.05)
    deadline = time.monotonic() + PATIENCE
    while Event.CLOSED not in link.events():
        assert time.monotonic() < deadline, link.summary()
        for segment in link.port.exchange(0.05):
            link.take(segment)
            if not segment.event:
                link.connection.write(b"answer")
                link.connection.writelines([b"more", b"of it"])
                link.connection.forward(segment)
    link.connection.write(b"after the end")
    link.connection.shutdown_write()
    assert link.events() == [Event.ERROR, Event.CLOSED]
    assert link.connection.pending == 0


def test_reset_while_data_is_queued(link: Link) -> None:
    link.fill()
    reset(link.peer)
    link.until_event(Event.CLOSED)
    assert link.events()[-2:] == [Event.ERROR, Event.CLOSED]
    assert link.connection.pending == 0


def test_half_close_by_the_application(link: Link) -> None:
    link.connection.write(b"bye")
    link.connection.shutdown_write()
    link.connection.shutdown_write()
    assert link.read_peer(3) == b"bye"
    assert link.peer.recv(1) == b""
    link.peer.sendall(b"not yet")
    link.until(lambda: link.received() == b"not yet")
    with pytest.raises(BrokenPipeError):
        link.connection.write(b"more")
    link.peer.close()
    link.until_event(Event.EOF)
    link.connection.close()
    link.until_event(Event.CLOSED)
    assert link.events() == [Event.EOF, Event.CLOSED]


@pytest.mark.parametrize("finish", ["shutdown_write", "close"])
def test_a_fin_does_not_wait_for_the_peer(link: Link, finish: str) -> None:
    """One exchange that waits for ever, with nothing to come, must send it first."""
    link.connection.write(b"last words")
    link.hear()
    link.port.watch(link.peer, lambda: None)  # ends the wait when the peer can read
    getattr(link.connection, finish)()
    assert link.peer.recv(10, socket.MSG_WAITALL) == b"last words"
    link.hear(PATIENCE)
    assert link.peer.recv(1) == b""
    link.port.unwatch(link.peer)


def test_closed_comes_once_both_directions_have_ended(link: Link) -> None:
    link.connection.write(b"bye")
    link.connection.shutdown_write()
    assert link.read_peer(3) == b"bye"
    assert link.peer.recv(1) == b""
    link.peer.close()
    link.until_event(Event.CLOSED)
    assert link.events() == [Event.EOF, Event.CLOSED]


def test_half_close_waits_for_what_is_queued(link: Link) -> None:
    written = link.fill()
    link.connection.shutdown_write()
    data = link.read_peer(written)
    assert data == PATTERN * (written // len(PATTERN))
    link.hear()
    assert link.peer.recv(1) == b""


def test_close_delivers_what_was_written(link: Link) -> None:
    written = link.fill()
    link.connection.close()
    link.connection.close()
    with pytest.raises(BrokenPipeError):
        link.connection.write(b"more")
    data = link.read_peer(written)
    assert data == PATTERN * (written // len(PATTERN))
    link.until_event(Event.CLOSED)
    assert link.peer.recv(1) == b""
    for _ in range(3):
        link.hear()
    assert link.events().count(Event.CLOSED) == 1
    assert link.events()[-1] is Event.CLOSED


def test_abort_resets(link: Link) -> None:
    link.fill()
    link.connection.abort()
    link.connection.abort()
    link.until_event(Event.CLOSED)
    assert link.connection.pending == 0
    with pytest.raises(ConnectionResetError):
        collections.deque(iter(lambda: link.peer.recv(1 << 20), b""), maxlen=0)


def test_nothing_follows_closed(link: Link) -> None:
    link.peer.sendall(b"unread")
    link.connection.close()
    link.until_event(Event.CLOSED)
    for _ in range(3):
        link.hear(0.01)
    assert link.story[-1] == (Event.CLOSED, 0)


# -- flow control --


def test_pending_and_writable(link: Link) -> None:
    written = link.fill()
    assert link.connection.pending > 0
    assert Event.WRITABLE not in link.events()
    assert link.read_peer(written) == PATTERN * (written // len(PATTERN))
    link.until_event(Event.WRITABLE)
    assert link.connection.pending == 0
    assert link.events() == [Event.WRITABLE]


def test_pausing_stops_the_sender_and_loses_nothing(link: Link) -> None:
    link.connection.pause_reading()
    link.connection.pause_reading()
    link.peer.setblocking(False)
    sent = 0
    quiet = 0
    while quiet < 20:
        try:
            sent += link.peer.send(PATTERN[sent % len(PATTERN) :])
            quiet = 0
        except BlockingIOError:
            quiet += 1
            link.hear(0.01)
        assert sent < 1 << 30
    before = len(link.received())
    assert before < sent
    link.connection.resume_reading()
    link.connection.resume_reading()
    link.until(lambda: len(link.received()) >= sent)
    assert link.received() == (PATTERN * (sent // len(PATTERN) + 1))[:sent]


def test_a_client_that_never_reads_does_not_hold_up_another(
    make_link: Callable[[], Link],
) -> None:
    stuck, lively = make_link(), make_link()
    stuck.fill()
    for number in range(100):
        lively.connection.write(b"%03d" % number)
        assert lively.read_peer(3) == b"%03d" % number


# -- views --


def one_segment(link: Link) -> Segment:
    deadline = time.monotonic() + PATIENCE
    while True:
        segments = [s for s in link.port.exchange(0.05) if not s.event]
        if segments:
            return segments[0]
        assert time.monotonic() < deadline


def test_views_are_read_only(link: Link) -> None:
    link.peer.sendall(b"look")
    view = one_segment(link).view
    assert view.readonly
    assert bytes(view) == b"look"
    view.release()


def test_a_view_dies_with_the_next_exchange(link: Link) -> None:
    link.peer.sendall(b"look")
    view = one_segment(link).view
    link.port.exchange()
    with pytest.raises(ValueError, match="released"):
        bytes(view)


@pytest.mark.parametrize("size", [4, 3000])
def test_a_view_dies_although_its_segment_was_taken_out_of_the_list(link: Link, size: int) -> None:
    link.peer.sendall(PATTERN[:size])
    deadline = time.monotonic() + PATIENCE
    while not (segments := link.port.exchange(0.05)):
        assert time.monotonic() < deadline
    views = []
    while segments:
        views.append(segments.pop().view)
    link.port.exchange()
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)


@pytest.mark.parametrize("size", [12, 3000])
@pytest.mark.parametrize("part", [lambda view: view[5:], pickle.PickleBuffer])
def test_what_is_kept_of_a_view_shows_the_same_bytes_and_stops_nobody(
    make_link: Callable[[], Link], part: Callable[[memoryview], Any], size: int
) -> None:
    careless, other = make_link(), make_link()
    port = careless.port
    kept: list[Any] = []
    expected: list[bytes] = []

    def keep_parts(size: int) -> None:
        received = 0
        while received < size:
            for segment in port.exchange(0.05):
                received += len(segment.view)
                kept.append(part(segment.view))
                expected.append(bytes(kept[-1]))
        port.exchange()

    for number in range(3):
        careless.peer.sendall(bytes([number]) * size)
        with pytest.warns(ResourceWarning, match=rf"{careless.connection.id}\b.* still in use"):
            keep_parts(size)
    sent = 0
    while sent < 6 << 20:  # more than all slots of a ring
        for link in (careless, other):
            link.peer.sendall(PATTERN[:65536])
            deadline = time.monotonic() + PATIENCE
            received = 0
            while received < 65536:
                assert time.monotonic() < deadline
                for segment in port.exchange(0.05):
                    assert segment.connection is link.connection
                    assert bytes(segment.view) == PATTERN[received : received + len(segment.view)]
                    received += len(segment.view)
            sent += 65536
    assert [bytes(piece) for piece in kept] == expected
    kept.clear()
    port.exchange()


# -- a program's own mistakes: told at once, in the same words on every backend --


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def attached_pair(port: Port, socket_pair: Callable[[], Pair]) -> Iterator[Pair]:
    """The peer's socket, and one that the port has."""
    peer, sock = socket_pair()
    port.attach(sock)
    with closing(peer):
        yield peer, sock


def refuses(code: int, sentence: str) -> pytest.RaisesExc[OSError]:
    """An OSError with this errno and exactly this text."""
    return pytest.raises(OSError, match=re.escape(f"[Errno {code}] {sentence}") + "$")


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


# -- the port --


def test_exchange_waits_no_longer_than_told(port: Port) -> None:
    waits = []
    for _ in range(3):
        start = time.monotonic()
        assert port.exchange(0.1) == []
        waits.append(time.monotonic() - start)
    # A busy machine makes it longer, but hardly each time.
    assert all(wait > 0.09 for wait in waits)
    assert min(waits) < 5
    assert port.exchange() == []


def test_watched_files_end_the_wait(port: Port) -> None:
    here, there = socket.socketpair()
    seen = []
    with here, there:
        port.watch(here, lambda: seen.append(here.recv(10)))
        there.send(b"now")
        start = time.monotonic()
        port.exchange(60.0)
        assert seen == [b"now"]
        assert time.monotonic() - start < 50
        port.unwatch(here)
        there.send(b"too late")
        port.exchange(0.02)
        assert seen == [b"now"]


def test_a_callback_that_raises_loses_nothing(link: Link) -> None:
    """Segments of the exchange that it ended are returned by the next one."""
    here, there = socket.socketpair()
    sent = b""
    raised = 0

    def fail() -> None:
        here.recv(1)
        raise RuntimeError("not now")

    with here, there:
        link.port.watch(here, fail)
        deadline = time.monotonic() + PATIENCE
        for size in (100, 3000, 600, 50) * 5:
            link.peer.sendall(PATTERN[:size])
            sent += PATTERN[:size]
            there.send(b"!")
            time.sleep(0.01)
            while len(link.received()) < len(sent):
                assert time.monotonic() < deadline, link.summary()
                try:
                    link.hear(0.05)
                except RuntimeError:
                    raised += 1
                    link.connection.write(b"?")
        link.port.unwatch(here)
    assert link.story == [sent]
    assert raised
    assert link.read_peer(raised) == b"?" * raised


def test_bytes_are_counted_on_one_side_only(link: Link) -> None:
    link.peer.sendall(b"12345")
    link.until(lambda: link.received() == b"12345")
    link.connection.write(b"123")
    link.read_peer(3)
    link.hear()
    stats = link.port.stats()
    received = {"rings": stats.rx_bytes, "sockets": stats.socket_rx_bytes}
    sent = {"rings": stats.tx_bytes, "sockets": stats.socket_tx_bytes}
    used, other = ("sockets", "rings") if link.port.backend == "sockets" else ("rings", "sockets")
    assert (received[used], sent[used]) == (5, 3)
    assert (received[other], sent[other]) == (0, 0)


def test_closing_the_port_closes_its_connections(
    port_factory: Callable[[], Port],
    socket_pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    peer, sock = socket_pair()
    with closing(peer):
        port = port_factory()
        port.attach(sock)
        port.close()
        port.close()
        assert peer.recv(1) == b""
        assert sock.fileno() == -1


@pytest.mark.parametrize("end", ["close", "shutdown_write", "abort"])
def test_a_closed_port_says_so(
    port_factory: Callable[[], Port],
    socket_pair: Callable[[], tuple[socket.socket, socket.socket]],
    end: str,
) -> None:
    peer, sock = socket_pair()
    with closing(peer):
        port = port_factory()
        connection = port.attach(sock)
        getattr(connection, end)()
        port.close()
        for _ in range(2):
            with pytest.raises(ValueError, match="closed"):
                port.exchange()
            connection.close()
            connection.abort()


def test_watched_files_may_be_closed_before_the_port(
    port_factory: Callable[[], Port], listening: Callable[[], Listening]
) -> None:
    attached, _connect = listening()
    port = port_factory()
    with port, socket.create_server(("", 0)) as listener:
        port.watch(listener, lambda: None)
        own = port.attach_listener(attached)
        port.watch(own, lambda: None)
    port.close()
    assert attached.fileno() == -1


def test_many_connections_at_once(make_link: Callable[[], Link]) -> None:
    links = [make_link() for _ in range(50)]
    for number, link in enumerate(links):
        link.peer.sendall(b"%03d" % number)
    deadline = time.monotonic() + PATIENCE
    while any(len(link.received()) < 3 for link in links):
        assert time.monotonic() < deadline
        for segment in links[0].port.exchange(0.05):
            for link in links:
                link.take(segment)
    for number, link in enumerate(links):
        assert link.received() == b"%03d" % number
    assert len({link.connection.id for link in links}) == 50


# -- reports of acknowledgements --


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


# -- segments that are granted --


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
