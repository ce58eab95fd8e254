"""The common part of the servers on an event loop.

The loop is :class:`stackmap.aio.EventLoop`, on rings and on sockets alike: its port counts bytes
for the reports.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any, Protocol

from stackmap.aio import EventLoop
from stackmap.codec.memcached import MetaSet

from .executor import Executor
from .server import DEFAULT_MAX_CONNECTIONS
from .statistics import Client, ServerStatistics
from .waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stackmap import Port

    from .client_codec import ClientCodec
    from .store import Store


class Connected(Protocol):
    """The state of one connection.

    Attributes:
        codec: accounts for what waits in the connection.
        heard: when its last request came, in seconds of the store's clock.
    """

    codec: ClientCodec
    heard: int

    @property
    def sock(self) -> Any:
        """Its socket."""

    @property
    def held(self) -> int:
        """Bytes of commands that were received and not executed."""
        ...

    @property
    def pending(self) -> int:
        """Bytes of replies that TCP has not taken."""
        ...

    def look_again(self) -> None:
        """Go on, because the codec has a message although nothing came."""

    def abort(self) -> None:
        """Disconnect the client at once, with RST."""


class AsyncioServer(abc.ABC):
    """A memcached-like server on an event loop.

    Args:
        port: the data path; the caller closes it after :meth:`run`.
        listeners: listening TCP sockets; the server closes them when it stops.
        store: the items.
        max_connections: at so many, further clients wait in the backlog.
        idle_timeout: seconds after which clients that asked for nothing are disconnected; 0 for
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
        self.listeners: Sequence[socket.socket] = list(listeners)
        self.max_connections = max_connections
        self.idle_timeout = idle_timeout
        self.accepting = False
        self.cut_off = 0
        self.store = store
        self.statistics = ServerStatistics(self, store, port)
        self.executor = Executor(store, self.statistics)
        self._port = port
        self._connected: set[Connected] = set()
        self._waiting: Waiting[Connected] = Waiting(store)
        self._stops = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    @abc.abstractmethod
    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until the event; then let the clients take what they asked for."""

    @abc.abstractmethod
    def model_report(self) -> Mapping[str, object]:
        """What ``stats stackmap`` says of the model."""

    def abort(self) -> None:
        """Disconnect all clients at once."""
        for connection in self.connected():
            self.cut_off += connection.pending > 0
            connection.abort()

    def connected(self) -> list[Connected]:
        """The connections, and those whose last replies are not sent yet."""
        return list(self._connected)

    def run(self) -> None:
        """Serve until :meth:`stop` is called; then let the clients take what they asked for."""
        with asyncio.Runner(loop_factory=functools.partial(EventLoop, self._port)) as runner:
            runner.run(self._main())

    def stop(self) -> None:
        """Make :meth:`run` return soon.  May be called from a signal handler or a thread.

        The second call ends it without waiting for the clients.
        """
        self._stops += 1
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._stop)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tick(self._loop)
        if self._stops:
            self._stop()
        self.accepting = True
        await self.serve(self._stopping)

    def _stop(self) -> None:
        self.accepting = False
        self._stopping.set()
        if self._stops > 1:
            self.abort()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once a second: move the store's clock, and look after the connections."""
        loop.call_later(1.0, self._tick, loop)
        self.store.tick()
        self._account_for_all()
        self._relieve()
        if self.idle_timeout:
            for connection in list(self._connected):
                if self.store.now - connection.heard > self.idle_timeout:
                    self.statistics.connections.idle_kicks += 1
                    connection.abort()

    # -- connections --

    def add(self, connection: Connected) -> None:
        """A connection has begun."""
        self._connected.add(connection)
        connection.codec.account = functools.partial(self._account, connection)
        counters = self.statistics.connections
        counters.current += 1
        counters.total += 1

    def remove(self, connection: Connected) -> None:
        """A connection has ended, but for what is still to be sent."""
        self._connected.remove(connection)
        self.statistics.connections.current -= 1
        self._update(connection)
        connection.codec.close()

    def clients(self) -> Iterator[Client]:
        """The connections, as ``stats conns`` shows them."""
        for connection in list(self._connected):
            yield Client(connection.sock, "conn_read", connection.heard)

    # -- memory --

    @property
    def waiting_bytes(self) -> int:
        """Memory that is reserved for what waits in connections."""
        self._account_for_all()
        return self.store.reserved

    def _update(self, connection: Connected, more: int = 0) -> None:
        held = connection.held + connection.pending + more
        self._waiting.account(connection, connection.codec, held)

    def _account(self, connection: Connected, more: int) -> None:
        """A connection has made progress, and holds ``more`` bytes than can be seen yet."""
        self._update(connection, more)
        if self.store.overdrawn:
            self._relieve()

    def _account_for_all(self) -> None:
        """Update all accounts; no event tells when clients take their replies."""
        for connection in {*self._connected, *self._waiting}:
            held = connection.held + connection.pending
            if held != connection.codec.charged:
                self._waiting.account(connection, connection.codec, held)

    def _relieve(self) -> None:
        """Free memory, because too much waits in connections."""
        counters = self.statistics.connections
        for connection in self._waiting.excess():
            codec = connection.codec
            if connection.held + connection.pending < codec.charged:
                self._update(connection)
                continue
            command = codec.drop_value()
            if command is not None:
                verb = b"ms" if isinstance(command, MetaSet) else command.verb.encode()
                self.store.refuse_for_memory(verb, command.key)
                connection.look_again()
            elif not connection.pending and codec.drop_line():
                counters.lines_dropped += 1
                connection.look_again()
            else:
                counters.replies_dropped += 1
                connection.abort()
            self._waiting.forget(connection, codec)
