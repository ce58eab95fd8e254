"""The server as actors: one owns each connection, and a listener supervises them.

The store is no actor.  Every command is executed by a plain handler, which nothing can interrupt,
and all actors share one thread; so a connection's actor may call the store, and its client need not
wait for a message there and one back.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from typing import TYPE_CHECKING, Any, Never

from stackmap.actor import ActorSystem, Child, ConnectionActor, Listener
from stackmap.codec.memcached import Invalid, Reply, Request

from .hosting import AsyncioServer, make_codec
from .server import GRACE

if TYPE_CHECKING:
    import asyncio
    import socket


class ActorServer(AsyncioServer):
    """A memcached-like server as actors; arguments as of :class:`AsyncioServer`.

    With several listeners, each of them has ``max_connections``.
    """

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until the event, then stop all actors."""
        #: Those included that have stopped, but whose last replies are not sent yet.
        self.actors: weakref.WeakSet[ClientActor] = weakref.WeakSet()
        with contextlib.ExitStack() as sockets:
            self._system = ActorSystem()
            async with self._system as system:
                for sock in self.listeners:
                    sockets.enter_context(sock)
                    system.spawn(Child(functools.partial(self._listener, sock), capacity=1))
                await stopping.wait()

    def _listener(self, sock: socket.socket) -> Listener[Request | Invalid, Reply]:
        return Listener(
            lambda: ClientActor(self),
            sock,
            capacity=1,
            codec=make_codec,
            max_connections=self.max_connections,
            shutdown=GRACE,
        )

    def abort(self) -> None:
        """Disconnect all clients at once."""
        for actor in list(self.actors):
            actor.abort()

    def model_report(self) -> dict[str, object]:
        """What ``stats stackmap`` says of the model."""
        return {"model": "actors", "dead_letters": self._system.dead_letters}


class ClientActor(ConnectionActor[Never, Request | Invalid, Reply]):
    """Owns one connection, and executes its client's commands."""

    def __init__(self, server: ActorServer) -> None:
        self._server = server
        self._store = server.store
        self._execute = server.executor.execute
        self.heard = server.store.now
        self.sock: Any = None

    def connected(self) -> None:
        """Deliver everything from now on; TCP's window holds the client back if need be."""
        self.sock = self.stream.transport.get_extra_info("socket")
        self._server.add(self)
        self._server.actors.add(self)
        self.stream.active(True)

    def received(self, message: Request | Invalid) -> None:
        """Execute a command, and send its reply."""
        self.heard = self._store.now
        self.send(self._execute(message))

    def abort(self) -> None:
        """Disconnect the client at once, with RST."""
        if self.has_stream:
            self.stream.abort()

    def on_stop(self, reason: BaseException | None) -> None:  # noqa: ARG002 (as of the base class)
        """The connection has ended, or nothing more comes on it."""
        self._server.remove(self)
