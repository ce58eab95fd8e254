# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""What a port and its connections must give a transport, a service or an actor.

Held to several backends as ``test_port_contract.py`` is.
"""

from __future__ import annotations

import errno
import os
import pickle
import select
import selectors
import signal
import socket
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from stackmap import Connection, Event, Port, Segment, errors
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
    refuses,
    reset,
    socket_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Pair = tuple[socket.socket, socket.socket]


def readable(port: Port, timeout: float = 0.0) -> bool:
    """Whether another loop would call exchange() now."""
    return bool(select.select([port], [], [], timeout)[0])


def exchange_until(port: Port, event: Event) -> list[Event]:
    """All events up to this one."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while event not in events:
        assert time.monotonic() < deadline, events
        events += [segment.event for segment in port.exchange(0.05) if segment.event]
    return events


# -- a port in another loop --


def test_its_descriptor_tells_of_data(link: Link) -> None:
    link.hear()
    assert not readable(link.port)
    link.peer.sendall(b"hello")
    assert readable(link.port, PATIENCE)
    link.until(lambda: link.received() == b"hello")
    link.until(lambda: not readable(link.port))


def test_its_descriptor_tells_of_events_of_its_own(make_link: Callable[[], Link]) -> None:
    port = make_link().port
    port.fileno()
    for end in ("close", "abort"):
        link = make_link()
        getattr(link.connection, end)()
        port.flush()
        assert readable(port, PATIENCE)
        link.until_event(Event.CLOSED)


def test_flushing_sends_and_leaves_views(link: Link) -> None:
    link.peer.sendall(PATTERN[:3000])
    view = one_segment(link).view
    before = bytes(view)
    link.connection.write(b"at once")
    link.port.flush()
    assert link.peer.recv(7, socket.MSG_WAITALL) == b"at once"
    assert bytes(view) == before
    link.connection.shutdown_write()
    link.port.flush()
    assert link.peer.recv(1) == b""
    assert bytes(view) == before


def test_its_connections(make_link: Callable[[], Link], port: Port) -> None:
    assert port.connections == []
    links = [make_link(), make_link()]
    assert set(port.connections) == {link.connection for link in links}
    links[0].connection.close()
    links[0].until_event(Event.CLOSED)
    assert port.connections == [links[1].connection]
    assert not port.closed


# -- waking --


@pytest.mark.parametrize("watching", [False, True])
def test_another_thread_ends_the_wait(port: Port, watching: bool) -> None:
    here, there = socket.socketpair()
    with here, there:
        if watching:
            port.watch(here, lambda: None)
        for _ in range(3):
            waker = threading.Timer(0.2, port.wakeup)
            waker.start()
            start = time.monotonic()
            assert port.exchange(PATIENCE) == []
            assert 0.1 < time.monotonic() - start < PATIENCE / 2
            waker.join()
        start = time.monotonic()
        assert port.exchange(0.2) == []
        assert time.monotonic() - start >= 0.2, "it was woken once more"
        if watching:
            port.unwatch(here)


def test_waking_before_the_wait_ends_it(port: Port) -> None:
    port.wakeup()
    port.wakeup()
    start = time.monotonic()
    assert port.exchange(PATIENCE) == []
    assert time.monotonic() - start < PATIENCE / 2


def test_the_handler_of_a_signal_ends_the_wait(port: Port) -> None:
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: port.wakeup())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        assert port.exchange(PATIENCE) == []
        assert time.monotonic() - start < PATIENCE / 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- watching for writing --


def test_watching_for_writing(port: Port) -> None:
    here, there = socket.socketpair()
    ready: list[None] = []
    with here, there:
        port.watch(here, lambda: ready.append(port.unwatch(here)), selectors.EVENT_WRITE)
        port.exchange(PATIENCE)
        assert ready == [None]
        for events in (0, 4, selectors.EVENT_READ | 8):
            with pytest.raises(ValueError, match=r"^events must be EVENT_READ, EVENT_WRITE or"):
                port.watch(here, lambda: None, events)
        port.watch(here, lambda: None, selectors.EVENT_READ | selectors.EVENT_WRITE)
        with pytest.raises(errors.BusyError):
            port.watch(here, lambda: None)
        port.unwatch(here)


# -- connecting --


@pytest.fixture
def address(listening: Callable[[], Listening]) -> tuple[str, int]:
    """Where nothing listens, on a host that answers."""
    sock, _connect = listening()
    with sock:
        found: tuple[str, int] = sock.getsockname()[:2]
    return found


def test_connecting(port: Port, listening: Callable[[], Listening]) -> None:
    sock, _connect = listening()
    with sock:
        connection = port.connect(sock.getsockname()[:2])
        assert port.connections == [connection]
        connection.write(b"written before, ")
        connection.write(b"and in order")
        assert exchange_until(port, Event.OPEN)[0] is Event.OPEN
        accepted, name = sock.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            port.flush()
            assert accepted.recv(28, socket.MSG_WAITALL) == b"written before, and in order"
            assert connection.sockname == name
            assert connection.peername == sock.getsockname()
            accepted.sendall(b"answer")
            link = Link(port, accepted, connection)
            link.until(lambda: link.received() == b"answer")
            connection.close()
            link.until_event(Event.CLOSED)
            assert accepted.recv(1) == b""
    assert port.connections == []


def test_closing_while_it_connects_sends_what_was_written(
    port: Port, listening: Callable[[], Listening]
) -> None:
    sock, _connect = listening()
    with sock:
        connection = port.connect(sock.getsockname()[:2])
        connection.write(b"hello and goodbye")
        connection.close()
        exchange_until(port, Event.CLOSED)
        accepted, _name = sock.accept()
        with accepted:
            assert accepted.recv(17, socket.MSG_WAITALL) == b"hello and goodbye"
            assert accepted.recv(1) == b""


def test_connecting_in_vain(port: Port, address: tuple[str, int]) -> None:
    connection = port.connect(address)
    connection.write(b"to nobody")
    told: list[Segment] = []
    deadline = time.monotonic() + PATIENCE
    while len(told) < 2:
        assert time.monotonic() < deadline
        told += port.exchange(0.05)
    assert [(segment.event, segment.errno) for segment in told] == [
        (Event.ERROR, errno.ECONNREFUSED),
        (Event.CLOSED, 0),
    ]
    assert isinstance(told[0].error, errors.BrokenError)
    assert isinstance(told[0].error, ConnectionRefusedError)
    assert {segment.connection for segment in told} == {connection}
    assert (connection.pending, connection.sock.fileno(), port.connections) == (0, -1, [])
    connection.write(b"no error")


def test_aborting_while_it_connects(port: Port, listening: Callable[[], Listening]) -> None:
    sock, _connect = listening()
    with sock:
        connection = port.connect(sock.getsockname()[:2])
        connection.write(b"never mind")
        connection.abort()
        assert exchange_until(port, Event.CLOSED) == [Event.CLOSED]
        assert (port.connections, connection.sock.fileno()) == ([], -1)


def test_closing_the_port_while_it_connects(
    port_factory: Callable[[], Port], listening: Callable[[], Listening]
) -> None:
    sock, _connect = listening()
    with sock, port_factory() as port:
        connection = port.connect(sock.getsockname()[:2])
    assert connection.sock.fileno() == -1


def test_connecting_to_a_name(port: Port) -> None:
    with pytest.raises(ValueError, match=r"^'localhost' is not an IP address"):
        port.connect(("localhost", 9))


# -- detaching --


def test_a_detached_socket_is_an_ordinary_one(port: Port, socket_pair: Callable[[], Pair]) -> None:
    peer, sock = socket_pair()
    with closing(peer):
        connection = port.attach(sock)
        link = Link(port, peer, connection)
        peer.sendall(b"by port")
        link.until(lambda: link.received() == b"by port")
        connection.write(b"before")
        port.detach(connection)
        assert connection.is_closing()
        link.until_event(Event.CLOSED)
        assert link.story == [b"by port", (Event.CLOSED, 0)]
        assert port.connections == []
        sock.sendall(b", after")
        assert peer.recv(13, socket.MSG_WAITALL) == b"before, after"
        peer.sendall(b"by socket")
        assert sock.recv(9, socket.MSG_WAITALL) == b"by socket"
        with pytest.raises(errors.ClosedError):
            connection.write(b"not any more")
        with refuses(errno.ENOENT, "the connection is gone"):
            port.detach(connection)
        again = Link(port, peer, port.attach(sock))
        peer.sendall(b"again")
        again.until(lambda: again.received() == b"again")


def test_refused_detaches(make_link: Callable[[], Link], port_factory: Callable[[], Port]) -> None:
    full, closed, failed = make_link(), make_link(), make_link()
    port = full.port
    full.fill()
    with pytest.raises(errors.WouldBlockError, match="unsent data") as caught:
        port.detach(full.connection)
    assert caught.value.errno == errno.EAGAIN
    closed.connection.close()
    closed.until_event(Event.CLOSED)
    with pytest.raises(errors.ClosedError, match="gone"):
        port.detach(closed.connection)
    reset(failed.peer)
    failed.until_event(Event.CLOSED)
    with pytest.raises(errors.BrokenError, match="gone"):
        port.detach(failed.connection)
    with port_factory() as other, pytest.raises(ValueError, match="of another port"):
        other.detach(full.connection)


# -- what is written --


def test_limits_of_writing(link: Link) -> None:
    connection = link.connection
    for limits in ((-1,), (10, 11), (10, -1)):
        with pytest.raises(ValueError, match=r"^write limits must be 0 <= low <= high"):
            connection.set_write_limits(*limits)
    connection.set_write_limits(3 << 20, 2 << 20)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    written = link.fill()
    told_at = -1

    def told() -> bool:
        nonlocal told_at
        if Event.WRITABLE in link.events() and told_at < 0:
            told_at = connection.pending
        return told_at >= 0

    read = 0
    link.peer.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while not told():
        assert time.monotonic() < deadline
        try:
            read += len(link.peer.recv(1 << 16))
        except BlockingIOError:
            link.hear(0.01)
            continue
        link.hear()
    assert 0 < told_at <= 2 << 20
    link.read_peer(written - read)
    assert link.events() == [Event.WRITABLE]
    connection.write(b"little")
    assert link.read_peer(6) == b"little"
    assert link.events() == [Event.WRITABLE]


def test_writable_that_is_owed(link: Link) -> None:
    connection = link.connection
    connection.set_write_limits(1 << 30, 0)
    connection.owe_writable()  # nothing is pending: it would come at once
    written = link.fill()
    link.read_peer(written)
    assert link.events() == []
    written = link.fill()
    connection.owe_writable()
    link.read_peer(written)
    link.until_event(Event.WRITABLE)
    assert connection.pending == 0
    assert link.events() == [Event.WRITABLE]


def test_what_is_unsent(link: Link) -> None:
    connection = link.connection
    connection.write(b"soon there")
    link.read_peer(10)
    link.until(lambda: connection.unsent == 0)
    written = link.fill()
    assert connection.pending < connection.unsent <= written
    assert connection.bytes_written == 10 + written
    link.read_peer(written)
    link.until(lambda: connection.unsent == 0)
    assert connection.pending == 0
    connection.abort()
    assert connection.unsent == 0
    with pytest.raises(errors.ClosedError):
        connection.write(b"uncounted")
    assert connection.bytes_written == 10 + written


def test_bytes_written_counts_bytes(link: Link) -> None:
    link.connection.writelines([b"12", bytearray(b"345"), memoryview(b"67")])
    link.connection.write(memoryview(bytes(80)).cast("Q"))
    link.connection.write(b"")
    assert link.connection.bytes_written == 87
    link.read_peer(87)


# -- reading --


def test_nothing_is_delivered_while_paused(link: Link) -> None:
    """Not even what has reached the port, and it all comes in order afterwards."""
    connection = link.connection
    expected = b""
    for size in (100, 3000, 7, 20_000):
        link.peer.sendall(PATTERN[:size])
        expected += PATTERN[:size]
        time.sleep(0.05)
        heard = len(link.received())
        connection.pause_reading()
        assert not connection.reading
        link.peer.sendall(b"more")
        expected += b"more"
        for _ in range(5):
            link.hear(0.01)
        assert len(link.received()) == heard
        connection.resume_reading()
        assert connection.reading
        if size == 3000:
            connection.pause_reading()
            link.hear(0.01)
            assert len(link.received()) == heard
            connection.resume_reading()
        whole = len(expected)
        link.until(lambda whole=whole: len(link.received()) == whole)
    assert link.story == [expected]


def test_the_end_of_a_paused_connection_waits(link: Link) -> None:
    link.peer.sendall(b"last words")
    link.peer.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    link.connection.pause_reading()
    link.connection.shutdown_write()
    for _ in range(5):
        link.hear(0.01)
    assert link.story == []
    assert link.peer.recv(1) == b""
    time.sleep(0.05)
    for _ in range(5):
        link.hear(0.01)
    assert link.story == []
    link.connection.resume_reading()
    link.until_event(Event.CLOSED)
    assert link.story == [b"last words", (Event.EOF, 0), (Event.CLOSED, 0)]


@pytest.mark.parametrize("end", ["close", "abort"])
def test_ending_a_paused_connection(link: Link, end: str) -> None:
    link.peer.sendall(b"unread")
    time.sleep(0.05)
    link.connection.pause_reading()
    link.hear(0.01)
    getattr(link.connection, end)()
    assert not link.connection.reading
    link.until_event(Event.CLOSED)
    assert link.story == [(Event.CLOSED, 0)]


def test_a_paused_connection_that_is_reset(link: Link) -> None:
    link.peer.sendall(b"unread")
    time.sleep(0.05)
    link.connection.pause_reading()
    link.hear(0.01)
    reset(link.peer)
    link.until_event(Event.CLOSED)
    assert link.story == [(Event.ERROR, errno.ECONNRESET), (Event.CLOSED, 0)]


@pytest.mark.parametrize("size", [10, 3000])
def test_a_segment_can_be_released_early(link: Link, size: int) -> None:
    link.peer.sendall(PATTERN[:size])
    segment = one_segment(link)
    segment.release()
    segment.release()
    for use in (lambda: bytes(segment.view), lambda: link.port.keep(segment)):
        with pytest.raises(ValueError, match="released"):
            use()
    with pytest.raises(ValueError, match="released"):
        link.connection.forward(segment)
    link.hear()


def test_keeping_without_a_copy_says_if_it_cannot(link: Link) -> None:
    link.peer.sendall(PATTERN[:3000])
    segment = one_segment(link)
    payload = bytes(segment.view)
    if link.port.backend == "sockets":
        kept = link.port.keep(segment, copy=False)
    else:  # this port has no extra buffers
        with pytest.raises(BufferError, match="can only be copied"):
            link.port.keep(segment, copy=False)
        assert bytes(segment.view) == payload
        kept = link.port.keep(segment)
    with kept:
        link.hear()
        assert bytes(kept.view) == payload
        assert repr(kept).endswith(f"{len(payload)} bytes>")
    assert repr(kept).endswith("released>")


# -- what a connection says of itself --


def test_addresses_are_there_when_the_connection_is_not(
    port: Port, listening: Callable[[], Listening]
) -> None:
    sock, connect = listening()
    by_hand, connect_by_hand = listening()
    with by_hand, port.attach_listener(sock) as listener:
        links = []
        for peer, accept in (
            (connect(), listener.accept),
            (connect_by_hand(), lambda: port.attach(by_hand.accept()[0])),
        ):
            links.append(Link(port, peer, accept()))
        for link in links:
            link.until(lambda link=link: link.connection.id)  # type: ignore[misc]
            sock_of_it = link.connection.sock
            names = (sock_of_it.getpeername(), sock_of_it.getsockname())
            port_number = link.peer.getsockname()[1]
            assert names[0][1] == port_number
            reset(link.peer)
            link.until_event(Event.CLOSED)
            assert (link.connection.peername, link.connection.sockname) == names
            assert "closed" in repr(link.connection)
            assert str(port_number) in repr(link.connection)


def test_it_says_what_it_is(link: Link) -> None:
    connection = link.connection
    assert not connection.is_closing()
    assert "paused" not in repr(connection)
    connection.pause_reading()
    link.fill()
    assert "paused" in repr(connection)
    assert f"{connection.pending} bytes pending" in repr(connection)
    connection.close()
    assert connection.is_closing()
    assert "closing" in repr(connection)


# -- errors --


def test_errors_are_of_a_kind(link: Link) -> None:
    reset(link.peer)
    deadline = time.monotonic() + PATIENCE
    told: list[Segment] = []
    while len(told) < 2:
        assert time.monotonic() < deadline
        told += link.port.exchange(0.05)
    failure, end = told
    assert isinstance(failure.error, errors.BrokenError)
    assert isinstance(failure.error, ConnectionResetError)
    assert failure.error.errno == errno.ECONNRESET
    assert str(failure.error) == f"[Errno {errno.ECONNRESET}] {os.strerror(errno.ECONNRESET)}"
    again = pickle.loads(pickle.dumps(failure.error))
    assert (type(again), again.args) == (type(failure.error), failure.error.args)
    assert end.error is None


def test_using_the_socket_beside_the_port(link: Link) -> None:
    sock = link.connection.sock
    link.peer.sendall(b"for the port")
    for use in (lambda: sock.send(b"x"), lambda: sock.sendall(b"x"), lambda: sock.recv(1)):
        with refuses(errno.EBUSY, os.strerror(errno.EBUSY)):
            use()
    link.until(lambda: link.received() == b"for the port")
    link.connection.write(b"and back")
    assert link.read_peer(8) == b"and back"


def test_errors_of_attaching_are_of_a_kind(port: Port, socket_pair: Callable[[], Pair]) -> None:
    peer, sock = socket_pair()
    with closing(peer):
        connection: Connection = port.attach(sock)
        with pytest.raises(errors.BusyError, match="the socket is attached already"):
            port.attach(sock)
        connection.abort()
        with pytest.raises(errors.ClosedError, match="the socket is closed"):
            port.attach(sock)
        exchange_until(port, Event.CLOSED)


def test_a_paused_connection_that_closes_takes_nothing_more(link: Link) -> None:
    link.fill()  # so that close() has something to wait for
    link.peer.sendall(b"on its way before the pause")
    time.sleep(0.2)
    link.connection.pause_reading()
    link.peer.setblocking(False)

    def taken() -> int:
        stats = link.port.stats()
        return stats.rx_bytes + stats.socket_rx_bytes

    link.hear(0.1)
    before = taken()
    link.connection.close()
    with suppress(BlockingIOError):
        while True:
            link.peer.send(bytes(65536))
    for _ in range(20):
        link.hear(0.01)
    assert taken() == before


def test_discarding_drops_what_tcp_has_not_taken(link: Link) -> None:
    connection = link.connection
    written = link.fill()
    connection.discard()
    connection.discard()
    assert connection.pending == 0
    with pytest.raises(errors.ClosedError):
        connection.write(b"too late")
    connection.close()
    link.until_event(Event.CLOSED)
    received = 0
    while piece := link.peer.recv(1 << 20):  # and no reset
        received += len(piece)
    assert 0 < received < written


def test_what_is_unacknowledged(link: Link) -> None:
    connection = link.connection
    connection.write(b"soon there")
    link.until(lambda: connection.unacknowledged == 0)
    assert not connection.report_written()  # there is nothing to report
    written = link.fill()
    assert connection.pending < connection.unacknowledged <= written
    assert connection.report_written()  # some of it is queued
    link.read_peer(written)
    link.until(lambda: connection.bytes_acked == connection.bytes_written)
    assert connection.unacknowledged == 0
    assert not connection.report_written()
    connection.abort()
    assert connection.unacknowledged == 0


def test_a_writer_that_does_not_exchange_hears_of_a_reset(link: Link) -> None:
    assert link.connection.send_error is None
    reset(link.peer)
    deadline = time.monotonic() + PATIENCE
    while link.connection.send_error is None:
        assert time.monotonic() < deadline
        link.connection.write(bytes(1000))
        link.port.flush()
    assert isinstance(link.connection.send_error, errors.BrokenError)
    link.until_event(Event.CLOSED)


def test_flushing_from_outside(link: Link) -> None:
    link.connection.write(b"from outside")
    thread = threading.Thread(target=link.port.flush_from_outside)
    thread.start()
    thread.join()
    assert link.peer.recv(100) == b"from outside"  # without an exchange
    link.port.close()
    link.port.flush_from_outside()
