"""A server: listens, gives each connection its service, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from stackmap.codec import check_codec_factory

from ._background import Background
from ._connection import ConcurrentConnection, ServedConnection
from ._factory import ServiceFactory
from ._listen import Acceptor, listen
from ._notify import notify
from ._service import Status, close, describe, status_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from ssl import SSLContext
    from types import TracebackType

    from stackmap.codec import Codec

    from ._listen import ListenAddress
    from ._service import Service

log = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

#: Seconds that tasks have to end after the deadline of a drain, at which they are cancelled.
CANCEL_TIME = 1.0


class Server(Generic[In, Out]):
    """What :func:`serve` returns: an asynchronous context manager, which listens while it is open.

    It runs on any event loop of asyncio.  Attributes that are not listed here are not for users.

    Attributes:
        grace: seconds that requests in progress get when the block is left.
        cut_off: connections that were cut off at a drain's deadline, and whose clients had not been
            answered, or not taken their replies.
    """

    def __init__(
        self,
        address: ListenAddress,
        service: Service[In, Out | None] | ServiceFactory[In, Out | None],
        codec: Callable[[], Codec[In, Out]],
        *,
        grace: float,
        ssl: SSLContext | None,
        max_connections: int | None,
        concurrency: int,
        backlog: int,
        reuse_port: bool,
    ) -> None:
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections must be 1 or more, not {max_connections}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
        check_codec_factory(codec)
        self._address = address
        self._given = service
        self.service = None if isinstance(service, ServiceFactory) else service
        self.factory = service if isinstance(service, ServiceFactory) else None
        self.make_codec = codec
        self.grace = grace
        self.concurrency = concurrency
        self._changed = asyncio.Event()
        self.background = Background(self._changed.set)
        self.deadline: float | None = None
        self.cut_off = 0
        self._ssl = ssl
        self._max_connections = max_connections
        self._backlog = backlog
        self._reuse_port = reuse_port
        self._acceptors: list[Acceptor] = []
        self._sockets: tuple[socket.socket, ...] = ()
        self._connections: set[ServedConnection] = set()
        #: Accepted sockets whose transports are being made: TLS takes a while.
        self._opening: set[asyncio.Task[None]] = set()
        self._draining: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        where = ", ".join(str(sock.getsockname()) for sock in self.sockets)
        return f"<Server of {describe(self._given)} on {where or 'nothing'}, {self.status.value}>"

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once a drain has begun."""
        return self._sockets

    @property
    def connections(self) -> int:
        """How many connections there are, those included that are being opened."""
        return len(self._connections) + len(self._opening)

    @property
    def status(self) -> Status:
        """Open; busy, while no connections are accepted for now; closed, once a drain has begun."""
        if not self._sockets:
            return Status.CLOSED
        if self._is_full() or any(acceptor.exhausted for acceptor in self._acceptors):
            return Status.BUSY
        return status_of(self.factory or self.service)

    # -- beginning -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Listen, and tell the service manager (``READY=1``, see sd_notify(3)).

        Raises:
            OSError: it cannot listen on the address.
            RuntimeError: the server has been started before.
        """
        if self._acceptors or self._closed.is_set():
            raise RuntimeError("a server can be started once: make another one with serve()")
        sockets = await listen(self._address, backlog=self._backlog, reuse_port=self._reuse_port)
        self._sockets = tuple(sockets)
        self._acceptors = [Acceptor(sock, self._take) for sock in sockets]
        for acceptor in self._acceptors:
            acceptor.start()
        notify("READY=1")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain; requests in progress get :attr:`grace` seconds."""
        await self.drain()

    async def wait_closed(self) -> None:
        """Wait until a drain has ended."""
        await self._closed.wait()

    # -- connections -----------------------------------------------------------------------------

    def _is_full(self) -> bool:
        return self._max_connections is not None and self.connections >= self._max_connections

    def _take(self, sock: socket.socket) -> None:
        """An accepted socket becomes a connection."""
        task = asyncio.get_running_loop().create_task(self._open(sock))
        self._opening.add(task)
        task.add_done_callback(self._opened_or_failed)
        if self._is_full():
            for acceptor in self._acceptors:
                acceptor.pause()

    async def _open(self, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make_connection, sock, ssl=self._ssl
            )
        except OSError as error:
            # The peer has gone, or is not one that TLS can be spoken with.
            log.debug("an accepted connection failed: %s", error)
            sock.close()

    def _make_connection(self) -> ServedConnection:
        return ServedConnection(self) if self.concurrency == 1 else ConcurrentConnection(self)

    def opened(self, connection: ServedConnection) -> None:
        """Called by a connection that has begun."""
        self._connections.add(connection)
        if self._draining is not None:
            connection.drain()

    def ended(self, connection: ServedConnection) -> None:
        """Called by a connection that has ended, with its last request."""
        self._connections.discard(connection)
        self._connection_ended()

    def _opened_or_failed(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an accepted connection failed: %r", error, exc_info=error)
        self._connection_ended()

    def _connection_ended(self) -> None:
        self._changed.set()
        if self._draining is None and not self._is_full():
            for acceptor in self._acceptors:
                acceptor.start()

    # -- ending ----------------------------------------------------------------------------------

    def start_draining(self, deadline: float | None = None) -> asyncio.Task[None]:
        """Begin to drain, see :meth:`drain`; for callbacks, and handlers of signals.

        Returns:
            The task that drains.  A drain that has begun already goes on with the earlier deadline.
        """
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + self.grace
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline
            self._changed.set()
        if self._draining is None:
            for acceptor in self._acceptors:
                acceptor.close()
            self._sockets = ()
            notify("STOPPING=1")
            closing = None
            if self.factory is not None:
                closing = loop.create_task(self.factory.aclose(deadline))
            self._draining = loop.create_task(self._drain(closing))
            for connection in self._connections:
                connection.drain()
        return self._draining

    async def drain(self, deadline: float | None = None) -> None:
        """Stop: finish what has been asked for, then end.  Idempotent.

        Listening sockets are closed before this waits for anything.  No factory makes services any
        more.  Requests that this host has received on an accepted connection are answered, and each
        connection is closed as soon as it has none left.  At the deadline what is left is cancelled
        and its connections are reset (:attr:`cut_off`).  At last the service is closed, if it can
        be.  Cancelling a caller does not cancel the drain.

        Args:
            deadline: a time of the running loop's clock (``loop.time()``); by default
                :attr:`grace` seconds from now.
        """
        await asyncio.shield(self.start_draining(deadline))

    async def _drain(self, closing: asyncio.Task[None] | None) -> None:
        try:
            await self._until_deadline(lambda: not (self._connections or self._opening))
            await self._cut_off()
            await self._until_deadline(lambda: not self.background.tasks)
            rest = set(self.background.tasks)
            for task in rest:
                task.cancel()
            if closing is not None:
                rest.add(closing)
            if rest:
                await asyncio.wait(rest, timeout=CANCEL_TIME)
            if self.service is not None:
                await close(self.service, self.deadline)
        finally:
            self._closed.set()

    async def _until_deadline(self, done: Callable[[], bool]) -> None:
        """Wait until something is done, or until the deadline, which may be moved meanwhile."""
        time = asyncio.get_running_loop().time
        while not done() and self.deadline is not None and (left := self.deadline - time()) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    async def _cut_off(self) -> None:
        """Reset the connections that are left, and wait for their tasks, which are cancelled."""
        left = list(self._connections)
        for opening in self._opening:
            opening.cancel()
        for connection in left:
            self.cut_off += not connection.idle or connection.peer.pending > 0
            connection.abort()
        if self.cut_off:
            log.warning("%d connections were cut off at the end of the drain", self.cut_off)
        if left:
            _done, stuck = await asyncio.wait(
                [connection.task for connection in left], timeout=CANCEL_TIME
            )
            if stuck:
                log.error("%d requests do not end although they were cancelled", len(stuck))


def serve(
    address: ListenAddress,
    service: Service[In, Out | None] | ServiceFactory[In, Out | None],
    codec: Callable[[], Codec[In, Out]],
    *,
    grace: float = 5.0,
    ssl: SSLContext | None = None,
    max_connections: int | None = None,
    concurrency: int = 1,
    backlog: int = 1024,
    reuse_port: bool = False,
) -> Server[In, Out]:
    """Serve a service while the returned context manager is open.

    ``async with serve(("", 7), service, Lines) as server: ...``

    Args:
        address: host and port, the path of a Unix socket, or one or more sockets that are bound;
            a host of ``""`` is every address.  The server closes the sockets.
        service: the service for all connections, or a factory that makes one for each.  A reply of
            None sends nothing.  The server closes it when it has drained.  What it raises is
            logged, and ends the connection: put :class:`Rescue` in front of it to reply instead.
        codec: makes the codec of each connection.
        grace: seconds that requests in progress get when the block is left.
        ssl: speak TLS.
        max_connections: how many connections there may be; others wait in the backlog.
        concurrency: how many requests of a connection may be in progress at a time.  Replies are
            always in the order of requests.  With more than 1 each request runs in a task.
        backlog: connections that the kernel holds until they are accepted.
        reuse_port: let other processes listen on the same port (``SO_REUSEPORT``).

    Raises:
        ValueError: ``max_connections`` or ``concurrency`` is less than 1.
        TypeError: ``codec`` makes no codecs; or, when the block is entered, ``address`` is none.
    """
    return Server(
        address,
        service,
        codec,
        grace=grace,
        ssl=ssl,
        max_connections=max_connections,
        concurrency=concurrency,
        backlog=backlog,
        reuse_port=reuse_port,
    )
