"""The server as a function: a service behind filters, served by :func:`stackmap.service.serve`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from stackmap.codec.memcached import Error, Invalid, Reply, Request
from stackmap.servers.drain import GRACE
from stackmap.service import (
    Monitor,
    Peer,
    Rescue,
    ResponseClass,
    Server,
    Service,
    ServiceFactory,
    Stats,
    per_connection,
    serve,
)

from .client_codec import ClientCodec
from .hosting import AsyncioServer
from .statistics import BACKLOG

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from .executor import Executor

log = logging.getLogger(__name__)

#: What a client is told if a command fails here; its connection goes on.
_INTERNAL_ERROR = Error("SERVER_ERROR", "internal error")


def make_service(executor: Executor, stats: Stats) -> Service[Request | Invalid, Reply]:
    """The server without its connections: commands behind filters."""

    async def commands(request: Request | Invalid) -> Reply:
        return executor.execute(request)

    return (
        Rescue[Request | Invalid, Reply](Exception, lambda _error: _INTERNAL_ERROR)
        .and_then(stats)
        .and_then(Monitor(_report))
        .and_then(commands)
    )


class ServiceServer(AsyncioServer):
    """A memcached-like server as a service and filters; arguments as of :class:`AsyncioServer`."""

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until the event, then drain."""
        self._stats = Stats()
        service = make_service(self.executor, self._stats)
        connections: ServiceFactory[Request | Invalid, Reply] = per_connection(
            lambda peer: ClientService(self, peer, service)
        )
        server: Server[Request | Invalid, Reply] = serve(
            self.listeners,
            connections,
            ClientCodec,
            grace=GRACE,
            max_connections=self.max_connections,
            backlog=BACKLOG,
        )
        async with server:
            await stopping.wait()
        self.cut_off += server.cut_off

    def model_report(self) -> dict[str, object]:
        """What ``stats stackmap`` says of the model."""
        outcomes = self._stats.outcomes
        return {
            "model": "service",
            "requests_succeeded": outcomes[ResponseClass.SUCCESS],
            "requests_failed": outcomes.total() - outcomes[ResponseClass.SUCCESS],
        }


class ClientService:
    """The service of one connection: the one of all, and a note of when the client was heard."""

    def __init__(
        self, server: AsyncioServer, peer: Peer, service: Service[Request | Invalid, Reply]
    ) -> None:
        self._server = server
        self._peer = peer
        self._service = service
        self._ended = False
        self._store = server.store
        self.heard = server.store.now
        self.sock: Any = peer.get_extra_info("socket")
        self.codec = cast("ClientCodec", peer.codec)
        server.add(self)

    def __call__(self, request: Request | Invalid, /) -> Awaitable[Reply]:
        """Answer a request."""
        self.heard = self._store.now
        return self._service(request)

    @property
    def held(self) -> int:
        """Bytes of commands that were received and not executed."""
        return 0 if self._ended else self.codec.held

    @property
    def pending(self) -> int:
        """Bytes of replies that TCP has not taken."""
        return 0 if self._ended else self._peer.pending

    def look_again(self) -> None:
        """Go on, because the codec has a message although nothing came."""
        self._peer.look_again()

    def abort(self) -> None:
        """Disconnect the client at once, with RST."""
        self._peer.abort()

    async def aclose(self, _deadline: float | None = None, /) -> None:
        """The connection has ended."""
        self._ended = True
        self._server.remove(self)


def _report(error: BaseException, *_about: object) -> None:
    log.error("a command failed", exc_info=error)
