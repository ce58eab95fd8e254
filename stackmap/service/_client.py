"""Services of other hosts."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast

from stackmap.codec import RemoteProtocolError

from ._errors import ConnectionLostError, NotConnectedError, ServiceClosedError
from ._flow import watch_transmit_slots
from ._service import Status
from ._waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext
    from types import TracebackType

    from stackmap.codec import Codec

    from ._service import Waiter

Req = TypeVar("Req")
Rep = TypeVar("Rep")

#: Host and port, or the path of a Unix socket.
ConnectAddress = tuple[str, int] | str | Path


class ClientConnection(asyncio.Protocol, Generic[Req, Rep]):
    """One connection to a server that answers requests in their order.

    Requests are written at once, behind those that have no reply yet (pipelining).  A caller that
    gives up leaves its place in the order: its reply is dropped when it comes.

    Args:
        codec: this end of the connection.
        made: is called with this connection when it is open.
        changed: is called with it when replies have come, and when it is lost.
    """

    def __init__(
        self,
        codec: Codec[Rep, Req],
        made: Callable[[ClientConnection[Req, Rep]], object],
        changed: Callable[[ClientConnection[Req, Rep]], object],
    ) -> None:
        self._codec = codec
        self._made = made
        self._changed = changed
        self._replies: collections.deque[asyncio.Future[Rep]] = collections.deque()
        self._write_paused = False
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.closing = False

    # -- what the transport calls ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        watch_transmit_slots(self._transport)
        self._made(self)

    def data_received(self, data: bytes) -> None:
        """Take replies."""
        self._codec.receive(data)
        self._take_replies()

    def eof_received(self) -> None:
        """The server has no more replies."""
        self._codec.receive_eof()
        self._take_replies()

    def pause_writing(self) -> None:
        """The server does not read requests."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The server has read requests."""
        self._write_paused = False
        self._changed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what has no reply."""
        self._fail(exc or ConnectionLostError("the server closed the connection"))
        self.lost.set_result(None)
        self._changed(self)

    # -- requests --------------------------------------------------------------------------------

    @property
    def in_progress(self) -> int:
        """Requests that have no reply, those included whose callers gave up."""
        return len(self._replies)

    @property
    def writable(self) -> bool:
        """The connection takes requests without having them wait in this process."""
        return not (self._write_paused or self.closing)

    def request(self, req: Req) -> asyncio.Future[Rep]:
        """Send a request; the future has the reply."""
        parts = self._codec.send(req)
        reply: asyncio.Future[Rep] = self._loop.create_future()
        self._replies.append(reply)
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)
        if self._codec.must_close:
            self.closing = True  # with the replies that are still to come
        return reply

    def close(self) -> None:
        """Close; what has no reply fails."""
        self.closing = True
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.closing = True
        self._transport.abort()

    def _take_replies(self) -> None:
        replies = self._replies
        next_message = self._codec.next_message
        try:
            while (message := next_message()) is not None:
                if not replies:
                    self._break(RemoteProtocolError("the server sent a reply to no request"))
                    break
                reply = replies.popleft()
                if not reply.done():
                    reply.set_result(message)
            self._after_messages()
        except RemoteProtocolError as error:
            self._break(error)
        self._changed(self)

    def _after_messages(self) -> None:
        """Send what the protocol itself says, and see whether the connection goes on."""
        output = self._codec.take_output()
        if output and not self.closing:
            self._transport.writelines(output)
        if self._codec.must_close:
            self.closing = True
            if not self._replies:
                self._transport.close()

    def _break(self, error: Exception) -> None:
        self._fail(error)
        self.abort()

    def _fail(self, error: Exception) -> None:
        self.closing = True
        replies, self._replies = self._replies, collections.deque()
        for reply in replies:
            if not reply.done():
                lost = ConnectionLostError(f"the connection ended before the reply came: {error}")
                lost.__cause__ = error
                reply.set_exception(lost)


class Client(Generic[Req, Rep]):
    """A service of another host, through a few connections: a closable service.

    Connections are opened when they are needed, and replaced when they are lost.  A request goes to
    the one with the fewest in progress.  The client is not ready while each of them has
    ``max_in_progress`` requests, or takes no more bytes; a request that is made all the same waits.

    Replies are matched to requests by their order, so the service must answer each request once.

    Args:
        address: host and port, or the path of a Unix socket.
        codec: makes the codec of each connection.
        connections: how many connections there may be.
        max_in_progress: requests of a connection that have no reply yet.
        ssl: speak TLS, for the host of the address.

    Raises (from a request):
        NotConnectedError: no connection could be made, so the request may be retried.
        ConnectionLostError: the connection ended before the reply came.
        ServiceClosedError: the client is closed.
        LocalProtocolError: the codec does not allow the request.
    """

    def __init__(
        self,
        address: ConnectAddress,
        codec: Callable[[], Codec[Rep, Req]],
        *,
        connections: int = 1,
        max_in_progress: int = 64,
        ssl: SSLContext | None = None,
    ) -> None:
        if connections < 1 or max_in_progress < 1:
            raise ValueError("a client needs connections >= 1 and max_in_progress >= 1")
        if ssl is not None and not isinstance(address, tuple):
            raise ValueError("TLS needs the name of a host, which a Unix socket has not")
        self._address = address
        self._codec = codec
        self._max_connections = connections
        self._max_in_progress = max_in_progress
        self._ssl = ssl
        self._connections: list[ClientConnection[Req, Rep]] = []
        #: The connection that is being made: one at a time.
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self._waiters = Waiters(self._room)

    def __repr__(self) -> str:
        return f"Client({self._address!r})"

    @property
    def status(self) -> Status:
        """Busy while it is not ready."""
        if self._closed:
            return Status.CLOSED
        return Status.OPEN if self._room() > 0 else Status.BUSY

    def ready(self) -> Waiter:
        """Not while all connections have enough requests, or take no more bytes."""
        return None if self._room() > 0 else self._waiters.add()

    async def __call__(self, req: Req, /) -> Rep:
        """Send a request, and wait for its reply."""
        while True:
            if self._closed:
                raise ServiceClosedError(f"{self!r} is closed")
            connection = self._least_loaded()
            if connection is None or connection.in_progress:
                opening = self._open_another()
                if connection is None:
                    await (self._waiters.add() if opening is None else asyncio.shield(opening))
                    continue
            return await connection.request(req)

    async def __aenter__(self) -> Self:
        """Open the first connection.

        Raises:
            NotConnectedError: it cannot be opened.
        """
        opening = self._open_another()
        if opening is not None:
            await asyncio.shield(opening)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; requests in progress fail."""
        await self.aclose(asyncio.get_running_loop().time())

    async def aclose(self, deadline: float | None = None, /) -> None:
        """Take no more requests, wait for those in progress until the deadline, and close."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while any(connection.in_progress for connection in self._connections):
                    await self._waiters.add()
        for connection in list(self._connections):
            if connection.in_progress:
                connection.abort()
            else:
                connection.close()
            await connection.lost

    # -- connections -----------------------------------------------------------------------------

    def _least_loaded(self) -> ClientConnection[Req, Rep] | None:
        """The connection to use; None if there is none that takes a request."""
        best, least = None, self._max_in_progress
        for connection in self._connections:
            if connection.writable and connection.in_progress < least:
                best, least = connection, connection.in_progress
        return best

    def _room(self) -> int:
        """How many requests are welcome; after the end all are, because they fail at once."""
        if self._closed:
            return 1
        room = (self._max_connections - len(self._connections)) * self._max_in_progress
        for connection in self._connections:
            if connection.writable:
                room += self._max_in_progress - connection.in_progress
        return room

    def _open_another(self) -> asyncio.Task[None] | None:
        """Open a connection if there may be another one; None if there may not."""
        if self._opening is None and len(self._connections) < self._max_connections:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return self._opening

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        address = self._address
        try:
            if isinstance(address, tuple):
                await loop.create_connection(self._make_connection, *address, ssl=self._ssl)
            else:
                await loop.create_unix_connection(self._make_connection, str(address))
        except OSError as error:
            raise NotConnectedError(f"cannot connect to {address}: {error}") from error

    def _make_connection(self) -> ClientConnection[Req, Rep]:
        return ClientConnection(self._codec(), self._connections.append, self._changed)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # whoever waits for the connection gets it, if anybody does
        self._waiters.wake()

    def _changed(self, connection: ClientConnection[Req, Rep]) -> None:
        """There may be room on a connection, or it is lost."""
        if connection.lost.done():
            self._connections.remove(connection)
        self._waiters.wake()


async def connect(
    address: ConnectAddress,
    codec: Callable[[], Codec[Rep, Req]],
    *,
    connections: int = 1,
    max_in_progress: int = 64,
    ssl: SSLContext | None = None,
) -> Client[Req, Rep]:
    """Make a :class:`Client`, with its first connection open.

    Raises:
        NotConnectedError: it cannot be opened.
    """
    client = Client(
        address, codec, connections=connections, max_in_progress=max_in_progress, ssl=ssl
    )
    return await client.__aenter__()
