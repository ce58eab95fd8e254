"""The other end of a victim's connections: one thread that reads, checks and sends."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pyroute2 import netns

from tests.guest.pattern import pattern
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK = 16384
#: Small enough that what is buffered at an end is soon read.
_BUFFER = 1 << 16


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in a network namespace for a moment: sockets made meanwhile stay there."""
    with Path("/proc/thread-self/ns/net").open() as home:
        netns.setns(namespace)
        try:
            yield
        finally:
            netns.setns(home.fileno())


class PeerLine:
    """One connection as the peer sees it."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.sent = 0
        self.goal = 0
        self.flooding = False
        self.received = 0
        self.extra = b""
        self.end: str | None = None

    @property
    def wants_to_send(self) -> bool:
        return self.end is None and (self.flooding or self.sent < self.goal)

    def receive(self, data: bytes) -> None:
        """Check what came; from where it is not the stream's, keep it."""
        if not self.extra:
            expected = pattern(2 * self.number, self.received, len(data))
            if data == expected:
                self.received += len(data)
                return
            same = next(i for i, byte in enumerate(data) if byte != expected[i])
            self.received += same
            data = data[same:]
        self.extra += data


class Peer:
    """Connections to a victim."""

    def __init__(self, namespace: str, address: tuple[str, int], count: int) -> None:
        with inside(namespace):
            socks = [socket.socket() for _ in range(count)]
        self.lines = [PeerLine(number, sock) for number, sock in enumerate(socks)]
        self._address = address
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._wake, self._woken = socket.socketpair()
        self._epoll.register(self._woken, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def connect(self, lines: Iterable[PeerLine]) -> None:
        """Connect some, in order."""
        for line in lines:
            line.sock.settimeout(60.0)
            line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            line.sock.connect(self._address)
            line.sock.setblocking(False)
            self._epoll.register(line.sock, select.EPOLLIN)

    def start(self) -> None:
        """Read from all from now on."""
        self._thread.start()

    # -- sending --

    def send(self, size: int) -> None:
        """Send the next bytes on each connection."""
        with self._lock:
            for line in self.lines:
                line.goal = max(line.goal, line.sent) + size
                self._watch(line)

    def flood(self, numbers: Iterable[int]) -> None:
        """Send on these connections without end."""
        with self._lock:
            for number in numbers:
                self.lines[number].flooding = True
                self._watch(self.lines[number])

    def hush(self) -> None:
        """Send no more; every connection's ``sent`` stays as it is from here on."""
        with self._lock:
            for line in self.lines:
                line.flooding = False
                line.goal = line.sent
                self._watch(line)

    def shutdown(self) -> None:
        """Send FIN on each connection."""
        with self._lock:
            for line in self.lines:
                line.sock.shutdown(socket.SHUT_WR)

    # -- results --

    @property
    def sent(self) -> list[int]:
        return [line.sent for line in self.lines]

    @property
    def received(self) -> list[int]:
        return [line.received for line in self.lines]

    @property
    def ends(self) -> list[str | None]:
        """How each connection ended: "EOF", the name of an errno, or None while it lasts."""
        return [line.end for line in self.lines]

    def close(self) -> None:
        """Reset what is still there, and end the thread."""
        with self._lock:
            for line in self.lines:
                if line.end is None:  # else it is half closed, or an error has ended it
                    reset_on_close(line.sock)
                    line.end = "closed"
                line.sock.close()
        self._wake.close()
        if self._thread.is_alive():
            self._thread.join()
        self._woken.close()
        self._epoll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the thread --

    def _watch(self, line: PeerLine) -> None:
        if line.end is None:
            wanted = select.EPOLLIN | (select.EPOLLOUT if line.wants_to_send else 0)
            self._epoll.modify(line.sock, wanted)

    def _run(self) -> None:
        lines = {line.sock.fileno(): line for line in self.lines}
        while True:
            ready = self._epoll.poll()
            with self._lock:
                for fd, events in ready:
                    if fd not in lines:
                        return
                    line = lines[fd]
                    if line.end is None:
                        self._serve(line, events)

    def _serve(self, line: PeerLine, events: int) -> None:
        try:
            if events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                data = line.sock.recv(1 << 16)
                if not data:
                    self._ended(line, "EOF")
                    return
                line.receive(data)
            # Poll may have said so before the line was told to stop, and to shut down.
            if events & select.EPOLLOUT and line.wants_to_send:
                size = CHUNK if line.flooding else min(CHUNK, line.goal - line.sent)
                line.sent += line.sock.send(pattern(2 * line.number + 1, line.sent, size))
                if not line.wants_to_send:
                    self._watch(line)
        except BlockingIOError:
            pass
        except OSError as error:
            self._ended(line, errno.errorcode[error.errno or 0])

    def _ended(self, line: PeerLine, how: str) -> None:
        line.end = how
        self._epoll.unregister(line.sock)
