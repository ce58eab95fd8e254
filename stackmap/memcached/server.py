"""The application: one :class:`Session` per connection, above whichever port it is given.

Each turn of the loop exchanges with the port once, and gives every connection that sent something
a bounded amount of work.  Those that are not done after that get on in later turns, a few in each,
so whatever a client sends, the others wait for no more than a turn.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import threading
import time
from collections import OrderedDict
from typing import IO, TYPE_CHECKING

from stackmap import Event
from stackmap.servers.drain import drain

from .session import Session
from .statistics import Client, ServerStatistics
from .waiting import Waiting

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from stackmap import Connection, Port

    from .store import Store

log = logging.getLogger(__name__)

DEFAULT_MAX_CONNECTIONS = 1024
#: Seconds; a day, which is more than any keep-alive.
MAX_IDLE_TIMEOUT = 86400
#: Replies a client has not taken, in bytes, above which no more of its commands are read.
HIGH_WATER = 32 << 10
#: Input that waits for its turn, in bytes, above which no more is read.
READ_AHEAD = 64 << 10
#: Connections accepted per wake-up, so that the established ones get their turn.
ACCEPTS_PER_TURN = 64
#: Connections that get on with their commands in a turn in which they received nothing.
RESUMED_PER_TURN = 64
#: How long, in seconds, a client that is refused has to read why.
FAREWELL = 2

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
        idle_timeout: seconds after which clients that sent and took nothing are disconnected; 0 for
            never.

    Attributes:
        cut_off: clients that were cut off at the end, before they had taken their replies.
    """

    def __init__(
        self,
        port: Port,
        listeners: Sequence[socket.socket],
        store: Store,
        *,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        idle_timeout: int = 0,
    ) -> None:
        self.statistics = ServerStatistics(self, store, port)
        self.listeners: Sequence[socket.socket] = list(listeners)
        self.max_connections = max_connections
        self.idle_timeout = idle_timeout
        self.accepting = False
        self.cut_off = 0
        #: All connections, and since when those that were refused have been.
        self.connections: set[Connection] = set()
        self._port = port
        self._store = store
        self._waiting: Waiting[Connection] = Waiting(store)
        #: Those whose commands wait for their turn, in the order in which they get it.
        self._busy: OrderedDict[Connection, None] = OrderedDict()
        #: Those that were told the end, and since when; they have not hung up yet.
        self._parting: dict[Connection, int] = {}
        self._looked_at = store.now
        self._stopping = False
        self._aborting = False
        #: Keeps the descriptor open during a write.  A signal handler may interrupt the holder.
        self._wake_lock = threading.RLock()
        self._wake_fd = -1
        self._exhausted_at = 0
        self._stopped_accepting_at: float | None = None

    def run(self) -> None:
        """Serve until :meth:`stop` is called; then let the clients take what they asked for."""
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        with os.fdopen(self._wake_fd, "rb", buffering=0) as wake:
            try:
                self._serve(wake)
            finally:
                with self._wake_lock:
                    self._wake_fd = -1

    def _serve(self, wake: IO[bytes]) -> None:
        self._port.watch(wake, self._woken)
        for listener in self.listeners:
            listener.setblocking(False)
        self._start_accepting()
        while not self._stopping:
            self._turn(_TICK)
            if not self.accepting and self._store.now != self._exhausted_at:
                self._start_accepting()
        self._stop_accepting()
        for listener in self.listeners:
            listener.close()
        self._drain()
        self._port.unwatch(wake)

    def stop(self) -> None:
        """Make :meth:`run` return soon.  May be called from a signal handler or a thread.

        The second call ends it without waiting for the clients.
        """
        self._aborting = self._stopping
        self._stopping = True
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    @property
    def waiting_bytes(self) -> int:
        """Memory that is reserved for what waits in connections."""
        return self._store.reserved

    def clients(self) -> Iterator[Client]:
        """The connections, as ``stats conns`` shows them."""
        for connection in list(self.connections):
            session: Session | None = connection.app
            if session is not None:
                yield Client(connection.sock, _state(connection, session), session.heard)

    def model_report(self) -> dict[str, object]:
        """What ``stats stackmap`` says of the model."""
        return {"model": "loop"}

    # -- one turn of the loop --

    def _turn(self, timeout: float) -> None:
        """Exchange with the port once, and serve what arrived and what waits."""
        segments = self._port.exchange(0.0 if self._busy else timeout)
        self._store.tick()
        now = self._store.now
        waiting = len(self._busy)
        for segment in segments:
            connection = segment.connection
            if segment.event:
                self._event(connection, segment.event, segment.errno)
                continue
            session: Session = connection.app
            session.heard = now
            # A session that stores its value is charged for nothing any more, but the connection
            # stays in self._waiting until it is settled.
            charged = session.charged
            output = session.respond(segment)
            if output:
                connection.write(output)
            if not session.idle or charged or connection.pending:
                self._settle(connection, session)
        if waiting:
            self._resume(min(waiting, RESUMED_PER_TURN))
        if self._store.overdrawn:
            self._relieve()
        if now != self._looked_at:
            self._looked_at = now
            self._look_after_connections(now)

    def _settle(self, connection: Connection, session: Session) -> None:
        """See what comes next for a connection that cannot just wait for its next segment."""
        if session.hang_up:
            self._part(connection, session)
            return
        pending = connection.pending
        if session.paused:
            if not pending:
                self.statistics.connections.yields += connection not in self._busy
                self._busy[connection] = None
            if pending or session.backlog > READ_AHEAD:
                connection.pause_reading()
        elif session.at_end:
            self._part(connection, session)
            return
        elif pending > HIGH_WATER:
            connection.pause_reading()
        else:
            connection.resume_reading()
        self._account(connection, session)

    def _resume(self, count: int) -> None:
        """Let the connections go on that have waited longest for their turn."""
        for _ in range(count):
            if not self._busy:
                break
            connection, _nothing = self._busy.popitem(last=False)
            session: Session = connection.app
            session.heard = self._store.now
            session.resume()
            output = session.take_output()
            if output:
                connection.write(output)
            self._settle(connection, session)

    def _account(self, connection: Connection, session: Session) -> None:
        self._waiting.account(connection, session, session.held + connection.pending)

    def _relieve(self) -> None:
        """Free memory, because too much waits in connections."""
        for connection in self._waiting.excess():
            session: Session = connection.app
            if session.held + connection.pending < session.charged:
                # TCP took more of its replies, of which no event tells.
                self._account(connection, session)
                continue
            if session.shed():
                connection.write(session.take_output())
                self._waiting.forget(connection, session)
                self._settle(connection, session)
                continue
            if session.refused and not connection.pending:
                self.statistics.connections.lines_dropped += 1
                connection.write(session.take_output())
                self._part(connection, session)
            else:
                self.statistics.connections.replies_dropped += 1
                self._abort(connection, session)

    def _part(self, connection: Connection, session: Session) -> None:
        """Hang up on a client, after it has read its last reply if it does not expect that."""
        session.drop()
        self._busy.pop(connection, None)
        self._account(connection, session)
        if not (session.refused or self._stopping):
            connection.close()
        elif connection not in self._parting:
            # Closing now would reset the connection if more of the client's input came, and with
            # that take the reply from it: wait until it hangs up as well.
            self._parting[connection] = self._store.now
            connection.shutdown_write()
            connection.resume_reading()

    def _abort(self, connection: Connection, session: Session) -> None:
        """Disconnect a client at once."""
        session.drop()
        self._busy.pop(connection, None)
        self._waiting.forget(connection, session)
        connection.abort()

    def _look_after_connections(self, now: int) -> None:
        """Once a second: disconnect those that have had their time."""
        for connection, since in list(self._parting.items()):
            if now - since > FAREWELL:
                connection.abort()
        if not self.idle_timeout:
            return
        for connection in list(self.connections):
            session: Session = connection.app
            if now - session.heard > self.idle_timeout:
                self.statistics.connections.idle_kicks += 1
                self._abort(connection, session)

    def _event(self, connection: Connection, event: Event, code: int) -> None:
        session: Session = connection.app
        if event & Event.WRITABLE:
            session.heard = self._store.now
            self._settle(connection, session)
        elif event & Event.EOF:
            session.at_end = True
            if session.hang_up:
                connection.close()
            else:
                self._settle(connection, session)
        elif event & Event.ERROR:
            log.debug("%r: %s", connection, os.strerror(code))
        elif event & Event.CLOSED:
            session.drop()
            self._busy.pop(connection, None)
            self._waiting.forget(connection, session)
            self._parting.pop(connection, None)
            self.connections.discard(connection)
            connection.app = None
            self.statistics.connections.current -= 1

    # -- accepting --

    def _start_accepting(self) -> None:
        self.accepting = True
        if self._stopped_accepting_at is not None:
            paused = time.monotonic() - self._stopped_accepting_at
            self.statistics.connections.listen_disabled_us += int(paused * 1e6)
            self._stopped_accepting_at = None
        for listener in self.listeners:
            self._port.watch(listener, functools.partial(self._accept, listener))

    def _stop_accepting(self) -> None:
        if self.accepting:
            self.accepting = False
            for listener in self.listeners:
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
                    self._stopped_accepting_at = time.monotonic()
                    self.statistics.connections.listen_disabled += 1
                    self._stop_accepting()
                    return
                if failure.errno == errno.ECONNABORTED:
                    continue
                raise
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        counters = self.statistics.connections
        if counters.current >= self.max_connections:
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
        self.connections.add(connection)
        counters.current += 1
        counters.total += 1

    # -- stopping --

    def _woken(self) -> None:
        os.eventfd_read(self._wake_fd)

    def _drain(self) -> None:
        """Answer what has arrived, and close all connections, each after its last reply."""
        self._turn(0.0)
        for connection in list(self.connections):
            session: Session = connection.app
            session.at_end = True
            connection.pause_reading()
            self._settle(connection, session)
        self.cut_off = drain(self._port, self._turn, self._is_answered, lambda: self._aborting)

    def _is_answered(self, connection: Connection) -> bool:
        return connection in self._parting and not connection.pending


def _state(connection: Connection, session: Session) -> str:
    """The name that memcached has for a connection's state."""
    if session.hang_up:
        return "conn_closing"
    if connection.pending:
        return "conn_mwrite"
    if session.paused:
        return "conn_parse_cmd"
    if session.in_value:
        return "conn_nread"
    return "conn_swallow" if session.skipping else "conn_read"
