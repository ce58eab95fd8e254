# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""The contract of every backend (``stackmap/_port.py``), as tests over the fixtures of ``link.py``.

``tests/guest/test_contract.py`` holds rings to it.
"""

from __future__ import annotations

import collections
import errno
import itertools
import pickle
import socket
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest

from stackmap import Event, Port
from tests.unit.link import (  # noqa: F401 (fixtures, used by name)
    PATIENCE,
    PATTERN,
    Link,
    Listening,
    link,
    listening,
    make_link,
    one_segment,
    port,
    port_factory,
    reset,
    socket_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
    assert not link.connection.dropped


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
    assert link.connection.dropped


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
        for end in (careless, other):
            end.peer.sendall(PATTERN[:65536])
            deadline = time.monotonic() + PATIENCE
            received = 0
            while received < 65536:
                assert time.monotonic() < deadline
                for segment in port.exchange(0.05):
                    assert segment.connection is end.connection
                    assert bytes(segment.view) == PATTERN[received : received + len(segment.view)]
                    received += len(segment.view)
            sent += 65536
    assert [bytes(piece) for piece in kept] == expected
    kept.clear()
    port.exchange()


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
    for number, end in enumerate(links):
        end.peer.sendall(b"%03d" % number)
    deadline = time.monotonic() + PATIENCE
    while any(len(end.received()) < 3 for end in links):
        assert time.monotonic() < deadline
        for segment in links[0].port.exchange(0.05):
            for end in links:
                end.take(segment)
    for number, end in enumerate(links):
        assert end.received() == b"%03d" % number
    assert len({end.connection.id for end in links}) == 50
