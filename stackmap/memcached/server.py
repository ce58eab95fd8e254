"""The application: one :class:`Session` per connection, above whichever port it is given."""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
from typing import IO, TYPE_CHECKING

from stackmap._port import Event

from .session import Session
from .statistics import ServerStatistics

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from stackmap._port import Connection, Port

    from .store import Store

log = logging.getLogger(__name__)

DEFAULT_MAX_CONNECTIONS = 1024
#: Replies a client has not taken, in bytes, above which no more of its commands are read.
HIGH_WATER = 256 << 10
#: Connections accepted per wake-up, so that the established ones get their turn.
ACCEPTS_PER_TURN = 64
#: How long, in seconds, clients have to take their last replies when the server stops.
GRACE = 5.0

_TOO_MANY = b"ERROR Too many open connections\r\n"
_TICK = 1.0
#: accept() fails with these when something is used up that time may give back.
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Server:
    """A memcached-like server.

    Args:
        port: the data path; the caller closes it after :meth:`run`.
        listeners: listening TCP sockets; the server closes them when it stops.
        store: the items.
        max_connections: clients above this number are told so, and disconnected.
    """

    def __init__(
        self,
        port: Port,
        listeners: Sequence[socket.socket],
        store: Store,
        *,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
    ) -> None:
        self.statistics = ServerStatistics(store, port, max_connections)
        self._port = port
        self._store = store
        self._listeners = list(listeners)
        self._accepting = False
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._stopping = False
        self._wake_fd = -1
        self._exhausted_at = 0

    def run(self) -> None:
        """Serve until :meth:`stop` is called; then let the clients take what they asked for."""
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        with os.fdopen(self._wake_fd, "rb", buffering=0) as wake:
            try:
                self._serve(wake)
            finally:
                self._wake_fd = -1

    def _serve(self, wake: IO[bytes]) -> None:
        self._port.watch(wake, self._woken)
        for listener in self._listeners:
            listener.setblocking(False)
        self._start_accepting()
        while not self._stopping:
            self._turn(_TICK)
            if not self._accepting and self._store.now != self._exhausted_at:
                self._start_accepting()
        self._stop_accepting()
        for listener in self._listeners:
            listener.close()
        self._drain()
        self._port.unwatch(wake)

    def stop(self) -> None:
        """Make :meth:`run` return soon.  May be called from a signal handler or a thread."""
        self._stopping = True
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    # -- one turn of the loop --

    def _turn(self, timeout: float) -> None:
        """Exchange with the port once, and serve what arrived."""
        segments = self._port.exchange(timeout)
        self._store.tick()
        for segment in segments:
            connection = segment.connection
            if segment.event:
                self._event(connection, segment.event, segment.errno)
                continue
            session: Session = connection.app
            output = session.respond(segment.view)
            if output:
                connection.write(output)
            if session.paused or session.hang_up or connection.pending > HIGH_WATER:
                self._hold(connection, session)

    def _hold(self, connection: Connection, session: Session) -> None:
        """Go on with a session that cannot just wait for its next segment."""
        while session.paused and connection.pending <= HIGH_WATER:
            session.resume()
            connection.write(session.take_output())
        if session.hang_up:
            connection.close()
        elif connection.pending > HIGH_WATER:
            connection.pause_reading()

    def _event(self, connection: Connection, event: Event, code: int) -> None:
        session: Session = connection.app
        if event & Event.WRITABLE:
            self._hold(connection, session)
            if connection.pending <= HIGH_WATER:
                if session.at_end and not session.paused:
                    connection.close()
                else:
                    connection.resume_reading()
        elif event & Event.EOF:
            session.at_end = True
            if not session.paused:
                connection.close()
        elif event & Event.ERROR:
            log.debug("%r: %s", connection, os.strerror(code))
        elif event & Event.CLOSED:
            self._connections.discard(connection)
            connection.app = None
            self.statistics.connections.current -= 1

    # -- accepting --

    def _start_accepting(self) -> None:
        self._accepting = True
        for listener in self._listeners:
            self._port.watch(listener, functools.partial(self._accept, listener))

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._port.unwatch(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as failure:
                if failure.errno in _EXHAUSTED:
                    log.warning("cannot accept connections now: %s", failure.strerror)
                    # Tried again in the next second.
                    self._exhausted_at = self._store.now
                    self._stop_accepting()
                    return
                if failure.errno == errno.ECONNABORTED:
                    continue
                raise
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        counters = self.statistics.connections
        if counters.current >= self._max_connections:
            counters.rejected += 1
            try:
                sock.send(_TOO_MANY)
            except OSError as failure:
                log.debug("could not tell a client that it is one too many: %s", failure)
            sock.close()
            return
        try:
            connection = self._port.attach(sock)
        except OSError as failure:
            # Its client has reset it already, as a rule.
            log.debug("cannot attach a connection: %s", failure)
            sock.close()
            return
        connection.app = Session(self._store, self.statistics)
        self._connections.add(connection)
        counters.current += 1
        counters.total += 1

    # -- stopping --

    def _woken(self) -> None:
        os.eventfd_read(self._wake_fd)

    def _drain(self) -> None:
        """Answer what has arrived, and close all connections, each after its last reply."""
        self._turn(0.0)
        for connection in self._connections:
            session: Session = connection.app
            session.at_end = True
            if session.paused:
                connection.pause_reading()
            else:
                connection.close()
        deadline = time.monotonic() + GRACE
        while self._connections:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            self._turn(remaining)
        for connection in self._connections:
            connection.abort()
        self._turn(0.0)
