"""What the servers on an event loop have in common, however they are composed.

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
from stackmap.codec.memcached import ServerCodec

from .executor import Executor
from .server import DEFAULT_MAX_CONNECTIONS
from .statistics import Client, ServerStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stackmap import Port

    from .store import Store

#: Bytes that a line may have.
MAX_LINE = 1 << 20

#: The codec of a connection, with the flags that memcached 1.6.18 knows.
make_codec = functools.partial(ServerCodec, max_line=MAX_LINE, later=False)


class Connected(Protocol):
    """What keeps the state of one connection.

    Attributes:
        heard: when its last request came, in seconds of the store's clock.
    """

    heard: int

    @property
    def sock(self) -> Any:
        """Its socket."""

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
        self.store = store
        self.statistics = ServerStatistics(self, store, port)
        self.executor = Executor(store, self.statistics)
        self._port = port
        self._connected: set[Connected] = set()
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
        for connection in list(self._connected):
            connection.abort()

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
        """Once a second: move the store's clock, and disconnect clients that are idle."""
        loop.call_later(1.0, self._tick, loop)
        self.store.tick()
        if self.idle_timeout:
            for connection in list(self._connected):
                if self.store.now - connection.heard > self.idle_timeout:
                    self.statistics.connections.idle_kicks += 1
                    connection.abort()

    # -- connections --

    def add(self, connection: Connected) -> None:
        """A connection has begun."""
        self._connected.add(connection)
        counters = self.statistics.connections
        counters.current += 1
        counters.total += 1

    def remove(self, connection: Connected) -> None:
        """A connection has ended."""
        self._connected.remove(connection)
        self.statistics.connections.current -= 1

    def clients(self) -> Iterator[Client]:
        """The connections, as ``stats conns`` shows them."""
        for connection in list(self._connected):
            yield Client(connection.sock, "conn_read", connection.heard)
