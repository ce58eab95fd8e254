"""An application that does with its port what it is told to, and may be killed at any moment.

``python -m tests.guest.victim FD`` starts a nursery: for each request on the socket FD it forks a
victim, because starting Python takes long on a debug kernel.  With each request comes the socket
for the victim's orders and a file in which the victim notes, after each exchange, how many bytes
the kernel has accepted from it: a promise that must be kept after its death.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import termios
import traceback
from typing import TYPE_CHECKING, Any

from pyroute2 import netns

from stackmap import BackendUnavailableError, Connection, Event, RingPort
from tests.guest.pattern import TRAILER, pattern

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 16384
QUEUED = 1 << 15
SEND_BUFFER = 1 << 17
TCP_USER_TIMEOUT = 18
MAX_FILES = 65536
PROMISE = struct.Struct("=Q")
PROMISE_SIZE = 4096


class Line:
    """One connection as the victim sees it."""

    def __init__(self, number: int, connection: Connection, spare: socket.socket) -> None:
        self.number = number
        self.connection = connection
        self.spare = spare
        self.written = 0
        self.received = 0
        self.flooding = False

    def write(self, size: int) -> None:
        """Send the next bytes of this line's stream."""
        self.connection.write(pattern(2 * self.number, self.written, size))
        self.written += size


class Victim:
    """Obeys the orders that come on a socket, and exchanges in between."""

    def __init__(self, control: socket.socket, promise: mmap.mmap) -> None:
        self.control = control
        self.promise = promise
        self.called = False
        self.stalled = False
        #: Actions on the port that wait for their time.
        self.exchange: Callable[[float], None] | None = None
        self.lines: list[Line] = []
        self.wrong = 0
        self.events: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.port: RingPort
        self.nic: str
        self.listener: socket.socket

    def run(self) -> None:
        """Obey until told to exit."""
        while self.exchange is None or self.stalled:
            self.obey()
        while True:
            more = self._write()
            self.exchange(0.0 if more else 1.0)
            self.promise[: PROMISE.size] = PROMISE.pack(self.port.stats().tx_bytes)
            if self.called:
                self.called = False
                self.obey()
            while self.stalled:
                self.obey()

    def obey(self) -> None:
        """Take one order, carry it out and answer."""
        order = self.control.recv(1 << 16)
        if not order:
            os._exit(3)  # the test has ended
        name, arguments = json.loads(order)
        try:
            answer = getattr(self, f"do_{name}")(**arguments)
        except Exception:  # noqa: BLE001 (goes to the test, which fails with it)
            answer = {"error": traceback.format_exc()}
        self.control.send(json.dumps(answer).encode())

    def _call(self) -> None:
        self.called = True

    def _write(self) -> bool:
        more = False
        for line in self.lines:
            if line.flooding and line.connection.pending < QUEUED:
                line.write(CHUNK)
                more = more or line.connection.pending < QUEUED
        return more

    def _check(self, timeout: float) -> None:
        """One exchange; what came must be the lines' streams."""
        for segment in self.port.exchange(timeout):
            line: Line = segment.connection.app
            if segment.event:
                self.events[Event(segment.event).name or "?"] += 1
                if segment.event & (Event.ERROR | Event.CLOSED):
                    line.flooding = False
                if segment.errno:
                    self.errors[errno.errorcode[segment.errno]] += 1
                continue
            size = len(segment.view)
            if bytes(segment.view) != pattern(2 * line.number + 1, line.received, size):
                self.wrong += 1
            line.received += size

    def _echo(self, timeout: float) -> None:
        """One exchange; what came is sent back."""
        for segment in self.port.exchange(timeout):
            if segment.event & (Event.EOF | Event.ERROR):
                segment.connection.close()
            elif not segment.event:
                segment.connection.write(segment.view)

    # -- orders --

    def do_open(
        self,
        namespace: str,
        nic: str,
        address: str,
        number: int = 0,
        **rings: int,
    ) -> int:
        """Open a port and a listener in a namespace; returns the listener's number."""
        netns.setns(namespace)
        self.nic = nic
        self.port = RingPort(nic, **rings)
        self.listener = socket.create_server((address, number), backlog=4096)
        # Its connections inherit this.
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        granted: int = self.listener.getsockname()[1]
        return granted

    def do_accept(self, ports: list[int]) -> None:
        """Accept and attach those that come from these ports; then exchanges go on by themselves.

        They become lines in the order of the ports.  They may come in another one: where the last
        packet of a handshake was lost, it is over when the peer is asked again.
        """
        if self.exchange is None:
            self.exchange = self._check
            self.port.watch(self.control, self._call)
        came = {}
        for _ in ports:
            accepted, address = self.listener.accept()
            came[address[1]] = accepted
        for number, port in enumerate(ports, len(self.lines)):
            accepted = came[port]
            spare = accepted.dup()
            line = Line(number, self.port.attach(accepted), spare)
            line.connection.app = line
            self.lines.append(line)

    def do_echo(self) -> None:
        """Attach each new connection, and echo what it receives."""
        self.listener.setblocking(False)
        self.exchange = self._echo
        self.port.watch(self.control, self._call)
        self.port.watch(self.listener, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            accepted, _address = self.listener.accept()
            self.port.attach(accepted)

    def do_send(self, size: int) -> int:
        """Send the next bytes on each connection."""
        for line in self.lines:
            line.write(size)
        return sum(line.written for line in self.lines)

    def do_flood(self, numbers: list[int]) -> None:
        """Send on these connections without end."""
        for number in numbers:
            self.lines[number].flooding = True

    def do_hush(self) -> None:
        """Write no more."""
        for line in self.lines:
            line.flooding = False

    def do_give_up(self, milliseconds: int) -> None:
        """Have TCP wait no longer than this for acknowledgements."""
        for line in self.lines:
            line.spare.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, milliseconds)

    def do_stall(self, stalled: bool) -> None:
        """Stop exchanging, or go on."""
        self.stalled = stalled

    def do_status(self) -> dict[str, Any]:
        """The application's state."""
        stats = self.port.stats()
        return {
            "accepted": stats.tx_bytes,
            "taken": stats.rx_bytes,
            "pinned": stats.bufs_pinned,
            "sent": stats.slots_sent,
            "released_by_ack": stats.slots_released_ack,
            "released_by_reset": stats.slots_released_reset,
            "bad": stats.bad_slots + stats.bad_rings,
            "unknown": stats.unknown_conn,
            "pending": sum(line.connection.pending for line in self.lines),
            "written": [line.written for line in self.lines],
            "received": [line.received for line in self.lines],
            "wrong": self.wrong,
            "events": self.events,
            "errors": self.errors,
        }

    def do_unread(self) -> list[int]:
        """Bytes per connection that TCP holds because the ring has no room for them."""
        return [
            struct.unpack("i", fcntl.ioctl(line.spare, termios.FIONREAD, bytes(4)))[0]
            for line in self.lines
        ]

    def do_open_another(self) -> str:
        """Try to open one more port on the NIC; returns the refusal."""
        try:
            RingPort(self.nic, tx_slots=4, rx_slots=4).close()
        except BackendUnavailableError as refusal:
            return str(refusal)
        return ""

    def do_close_connections(self) -> None:
        """Close each connection, and its socket with it, before the port; CLOSED must follow."""
        self.do_hush()
        self.stalled = False
        for line in self.lines:
            line.spare.close()
            line.connection.close()

    def do_close_port(self) -> int:
        """Close the port and keep the sockets; returns how many bytes were accepted in all."""
        self.port.close()
        self.stalled = True  # there is nothing to exchange any more
        return self.port.stats().tx_bytes

    def do_speak_ordinarily(self) -> None:
        """Go on with the sockets that a closed port has left, and end the streams."""
        for line in self.lines:
            line.spare.sendall(TRAILER)
            line.spare.shutdown(socket.SHUT_WR)

    def do_listen_ordinarily(self, sent: list[int]) -> int:
        """Read what the sockets still get, up to EOF; returns how much the ports had taken.

        Of each stream, whose whole length is in ``sent``, it must be the end.
        """
        taken = 0
        for line, whole in zip(self.lines, sent, strict=True):
            rest = b""
            while chunk := line.spare.recv(1 << 16):
                rest += chunk
            start = whole - len(rest)
            taken += start
            for at in range(0, len(rest), CHUNK):
                part = rest[at : at + CHUNK]
                if part != pattern(2 * line.number + 1, start + at, len(part)):
                    self.wrong += 1
        return taken

    def do_fork(self, lasting: bool) -> int:
        """Fork a child that inherits all descriptors and ends at once, or when it is killed."""
        child = os.fork()
        if not child:
            if not lasting:
                os._exit(0)
            self.control.close()
            while True:
                signal.pause()
        if not lasting:
            os.waitpid(child, 0)
        return child

    def do_exit(self) -> None:
        """End without closing anything."""
        os._exit(0)


def main() -> None:
    """Fork victims until the other end of the socket is closed."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, fds, _flags, _address = socket.recv_fds(requests, 1, 2)
        if not request:
            return
        child = os.fork()
        if not child:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with socket.socket(fileno=fds[0]) as control:
                Victim(control, mmap.mmap(fds[1], PROMISE_SIZE)).run()
        requests.send(struct.pack("=I", child))
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    main()
