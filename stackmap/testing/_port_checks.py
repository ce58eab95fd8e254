"""Checks that every port must pass, whatever carries its bytes.

They expect what :class:`stackmap.Port` and :class:`stackmap.Connection` promise.  Where these leave
a choice (how bytes are cut into segments, how much a connection queues), nothing is expected.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from types import MappingProxyType
from typing import TYPE_CHECKING

from stackmap import Event, reset_on_close

from ._errors import ConformanceError, expect, expect_same, naming

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from stackmap import Kept, Port, Segment

    #: Opens a port.
    OpenPort = Callable[[], Port]
    #: Makes an established TCP connection: the peer's socket, and the one to attach.
    Connect = Callable[[], tuple[socket.socket, socket.socket]]
    PortCheck = Callable[[OpenPort, Connect], None]

#: Seconds to wait for what must happen, and for what must not.
_PATIENCE = 60.0
_QUIET = 0.1
#: Bytes that are queued before a connection counts as full: more than the kernel's buffers hold.
_FULL = 4 << 20
_PATTERN = bytes(range(251)) * 1024


class _Link:
    """A connection on a port, and its peer; ``story`` has all that the port told of it."""

    def __init__(self, port: Port, peer: socket.socket, sock: socket.socket) -> None:
        self.port, self.peer = port, peer
        self.connection = port.attach(sock)
        #: Bytes and events in order; adjacent bytes are joined.
        self.story: list[bytes | tuple[Event, int]] = []
        #: Those with data, of the last exchange and of all.
        self.received: list[Segment] = []
        self.segments = 0

    def exchange(self, timeout: float = 0.0) -> None:
        segments = [s for s in self.port.exchange(timeout) if s.connection is self.connection]
        self.received = [s for s in segments if not s.event]
        self.segments += len(self.received)
        for segment in segments:
            if segment.event:
                self.story.append((segment.event, segment.errno))
            elif self.story and isinstance(self.story[-1], bytes):
                self.story[-1] += bytes(segment.view)
            else:
                self.story.append(bytes(segment.view))

    def until(self, happened: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                told = [f"{len(e)} bytes" if isinstance(e, bytes) else e for e in self.story]
                raise ConformanceError(
                    f"{what} did not happen within {_PATIENCE:.0f} s; so far: {told}"
                )
            self.exchange(0.05)

    def quiet(self) -> None:
        """Give what must not happen a moment to happen."""
        end = time.monotonic() + _QUIET
        while (left := end - time.monotonic()) > 0:
            self.exchange(left)

    @property
    def events(self) -> list[Event]:
        return [entry[0] for entry in self.story if not isinstance(entry, bytes)]

    @property
    def data(self) -> bytes:
        return b"".join(entry for entry in self.story if isinstance(entry, bytes))

    def receives(self, data: bytes, what: str) -> None:
        self.until(lambda: len(self.data) >= len(data), f"the arrival of {what}")
        expect_same(self.data, data, what)

    def peer_receives(self, data: bytes, what: str) -> None:
        got = bytearray()
        self.peer.setblocking(False)

        def all_there() -> bool:
            with contextlib.suppress(BlockingIOError):
                while len(got) < len(data):
                    piece = self.peer.recv(1 << 20)
                    expect(piece, f"{what} ended after {len(got)} bytes of {len(data)}")
                    got.extend(piece)
            return len(got) >= len(data)

        self.until(all_there, f"the arrival of {what}")
        self.peer.settimeout(_PATIENCE)
        expect_same(bytes(got), data, what)

    def send_in_background(self, data: bytes) -> threading.Thread:
        """Have the peer send more than its buffers may hold."""

        def send() -> None:
            with contextlib.suppress(OSError):  # a check that has failed closes the socket
                self.peer.sendall(data)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        return sender

    def fill(self) -> bytes:
        """Write until the connection queues, and forget what was told; returns what was written."""
        written = bytearray()
        while self.connection.pending < _FULL:
            expect(len(written) < 1 << 30, "1 GB was written to a peer that reads nothing")
            self.connection.write(_PATTERN)
            written += _PATTERN
            self.exchange()
        self.story.clear()  # before its buffers were full, it may have sent all that there was
        return bytes(written)

    def reset(self) -> None:
        """Have the peer reset the connection."""
        reset_on_close(self.peer)
        self.peer.close()


@contextlib.contextmanager
def _linked(open_port: OpenPort, connect: Connect) -> Generator[_Link, None, None]:
    with open_port() as port:
        peer, sock = connect()
        with peer:
            peer.settimeout(_PATIENCE)
            yield _Link(port, peer, sock)


def _written_bytes_arrive(open_port: OpenPort, connect: Connect) -> None:
    """Written bytes arrive whole and in order; the buffer is the caller's again at once."""
    with _linked(open_port, connect) as link:
        buffer = bytearray(70_000)
        expected = bytearray()
        for number, size in enumerate((1, 64, 300, 2048, 2049, 4096, 4097, 70_000)):
            buffer[:size] = bytes([number + 1]) * size
            link.connection.write(memoryview(buffer)[:size])
            expected += buffer[:size]
            buffer[:size] = bytes(size)
        link.peer_receives(bytes(expected), "what was written")


def _sent_bytes_are_received(open_port: OpenPort, connect: Connect) -> None:
    """The peer's bytes come whole and in order, in views that cannot be written."""
    with _linked(open_port, connect) as link:
        sender = link.send_in_background(_PATTERN)
        link.receives(_PATTERN, "what the peer sent")
        sender.join()
        link.exchange()
        link.peer.sendall(b"more")
        link.until(lambda: link.received, "the arrival of more")
        expect(link.received[0].view.readonly, "the view of a received segment can be written")


def _views_end_with_the_next_exchange(open_port: OpenPort, connect: Connect) -> None:
    """A view that was not kept is released by the next exchange; one that was kept stays."""
    with _linked(open_port, connect) as link:
        for size in (4, 3000):
            link.peer.sendall(_PATTERN[:size])
            received = bytearray()
            views: list[memoryview] = []
            kept: list[Kept] = []
            deadline = time.monotonic() + _PATIENCE
            while len(received) < size:
                expect(time.monotonic() < deadline, "what the peer sent did not arrive")
                for segment in link.port.exchange(0.05):
                    received += segment.view
                    views.append(segment.view)
                    kept.append(link.port.keep(segment))
            link.exchange()
            for view in views:
                with contextlib.suppress(ValueError):
                    bytes(view)
                    raise ConformanceError("a view shows bytes after the next exchange")
            expect_same(b"".join(k.view for k in kept), _PATTERN[:size], "what was kept")
            for each in kept:
                each.release()


def _nothing_comes_while_paused(open_port: OpenPort, connect: Connect) -> None:
    """A paused connection delivers nothing, holds its peer back, and loses nothing."""
    with _linked(open_port, connect) as link:
        link.connection.pause_reading()
        link.quiet()
        before = len(link.data)
        link.peer.setblocking(False)
        sent, refused = 0, 0
        while refused < 5:
            expect(sent < 1 << 30, "1 GB was taken from the peer of a paused connection")
            try:
                sent += link.peer.send(_PATTERN[sent % len(_PATTERN) :])
                refused = 0
            except BlockingIOError:
                refused += 1
                link.quiet()
            expect(len(link.data) == before, "a paused connection delivered data")
        link.connection.resume_reading()
        link.receives((_PATTERN * (sent // len(_PATTERN) + 1))[:sent], "what came while paused")


def _granted_segments_come(open_port: OpenPort, connect: Connect) -> None:
    """As many segments come as were granted, and the rest after the next grant."""
    with _linked(open_port, connect) as link:
        link.connection.grant(2)
        sender = link.send_in_background(_PATTERN)
        link.until(lambda: link.segments >= 2, "the arrival of two granted segments")
        link.quiet()
        expect(link.segments == 2, f"{link.segments} segments came where 2 were granted")
        link.connection.grant(None)
        link.receives(_PATTERN, "what came in granted segments")
        sender.join()


def _a_full_connection_becomes_writable(open_port: OpenPort, connect: Connect) -> None:
    """``pending`` says what is queued; WRITABLE comes once, when all of it has been sent."""
    with _linked(open_port, connect) as link:
        written = link.fill()
        link.quiet()
        expect(Event.WRITABLE not in link.events, "WRITABLE came while bytes were queued")
        link.peer_receives(written, "what was queued")
        link.until(lambda: link.events, "WRITABLE")
        link.quiet()
        expect(link.events == [Event.WRITABLE], f"{link.events} came instead of one WRITABLE")
        expect(link.connection.pending == 0, "bytes are pending after WRITABLE")


def _a_report_follows_the_ack(open_port: OpenPort, connect: Connect) -> None:
    """ACKED comes for the write that asked for it, when the peer's TCP has its last byte."""
    with _linked(open_port, connect) as link:
        link.connection.write(b"not reported")
        link.connection.write(b"reported", report=True)
        link.peer_receives(b"not reportedreported", "what was written")
        link.until(lambda: link.events, "ACKED")
        link.quiet()
        expect(link.events == [Event.ACKED], f"{link.events} came instead of one ACKED")
        acked = link.connection.bytes_acked
        expect(acked == 20, f"bytes_acked is {acked} when 20 bytes were reported")


def _a_half_can_be_closed(open_port: OpenPort, connect: Connect) -> None:
    """EOF comes behind the peer's last byte; what is written then arrives, and CLOSED is last."""
    with _linked(open_port, connect) as link:
        link.peer.sendall(b"request")
        link.peer.shutdown(socket.SHUT_WR)
        link.until(lambda: link.events, "EOF")
        expect(link.story == [b"request", (Event.EOF, 0)], f"{link.story} came instead of EOF")
        link.connection.write(b"reply")
        link.connection.shutdown_write()
        link.peer_receives(b"reply", "what was written after EOF")
        expect(link.peer.recv(1) == b"", "the peer did not see the end")
        link.until(lambda: Event.CLOSED in link.events, "CLOSED")
        link.quiet()
        expect(link.events == [Event.EOF, Event.CLOSED], f"{link.events}, not EOF and CLOSED")


def _close_sends_everything(open_port: OpenPort, connect: Connect) -> None:
    """``close()`` sends what is queued before its FIN, and CLOSED comes once."""
    with _linked(open_port, connect) as link:
        written = link.fill()
        link.connection.close()
        link.connection.close()
        try:
            link.connection.write(b"late")
        except BrokenPipeError:
            pass
        else:
            raise ConformanceError("a closed connection could be written to")
        link.peer_receives(written, "what was queued when it was closed")
        link.until(lambda: Event.CLOSED in link.events, "CLOSED")
        expect(link.peer.recv(1) == b"", "the peer did not see the end")
        link.quiet()
        expect(link.events[-1:] == [Event.CLOSED], f"{link.events[-1:]} came after CLOSED")
        expect(link.events.count(Event.CLOSED) == 1, "CLOSED came more than once")


def _a_reset_is_told(open_port: OpenPort, connect: Connect) -> None:
    """A reset is told as ERROR with its errno, then CLOSED; writing to it raises nothing."""
    with _linked(open_port, connect) as link:
        link.reset()
        link.connection.write(b"too late")
        link.until(lambda: Event.CLOSED in link.events, "CLOSED")
        link.quiet()
        found = [entry for entry in link.story if not isinstance(entry, bytes)]
        expected = [(Event.ERROR, code) for code in (errno.ECONNRESET, errno.EPIPE)]
        expect(found[0] in expected, f"{found[0]} came instead of ERROR with ECONNRESET")
        expect(found[1:] == [(Event.CLOSED, 0)], f"{found[1:]} came instead of one CLOSED")


def _a_wait_ends(open_port: OpenPort, connect: Connect) -> None:
    """A wait ends when its time is up, when a watched file is ready, and at ``wakeup()``."""
    with _linked(open_port, connect) as link:
        port = link.port
        expect(port.exchange(0.01) == [], "an exchange on which nothing happened returned segments")
        here, there = socket.socketpair()
        with here, there:
            seen: list[bytes] = []
            port.watch(here, lambda: seen.append(here.recv(10)))
            there.sendall(b"look")
            port.exchange(_PATIENCE)
            expect(seen == [b"look"], "a file that was ready did not end the wait")
            port.unwatch(here)
        woken = threading.Event()

        def wait() -> None:
            with contextlib.suppress(OSError):  # a check that has failed closes the port
                port.exchange(_PATIENCE)
                woken.set()

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        port.wakeup()
        expect(woken.wait(_PATIENCE / 2), "wakeup() did not end a wait of another thread")
        waiter.join()


def _closing_the_port_closes_its_connections(open_port: OpenPort, connect: Connect) -> None:
    """A closed port closes its connections and their sockets, and says so afterwards."""
    with open_port() as port:
        peer, sock = connect()
        with peer:
            peer.settimeout(_PATIENCE)
            port.attach(sock)
            port.close()
            expect(port.closed, "a closed port does not say that it is closed")
            try:
                ended = peer.recv(1) == b""
            except ConnectionResetError:
                ended = True
            except TimeoutError:
                ended = False
            expect(ended, "the peer did not see the end when the port was closed")


PORT_CHECKS: Mapping[str, PortCheck] = MappingProxyType(
    {
        check.__name__.lstrip("_"): check
        for check in (
            _written_bytes_arrive,
            _sent_bytes_are_received,
            _views_end_with_the_next_exchange,
            _nothing_comes_while_paused,
            _granted_segments_come,
            _a_full_connection_becomes_writable,
            _a_report_follows_the_ack,
            _a_half_can_be_closed,
            _close_sends_everything,
            _a_reset_is_told,
            _a_wait_ends,
            _closing_the_port_closes_its_connections,
        )
    }
)


def check_port(
    open_port: OpenPort, connect: Connect, checks: Mapping[str, PortCheck] = PORT_CHECKS
) -> None:
    """Hold a port to the contract of all ports.

    ::

        def connect():
            with socket.create_server(("127.0.0.1", 0)) as listener:
                peer = socket.create_connection(listener.getsockname())
                return peer, listener.accept()[0]

        check_port(MyPort, connect)

    Args:
        open_port: opens a port; the check closes it.  It is called once for each check.
        connect: makes an established TCP connection, and returns the peer's socket and the one to
            attach; the check closes both.
        checks: which of ``PORT_CHECKS``.

    Raises:
        ConformanceError: the port does not keep to the contract; it says in what.
    """
    for name, check in checks.items():
        with naming(name, check):
            check(open_port, connect)
