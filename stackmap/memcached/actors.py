"""The server as actors: one owns each connection, and a listener supervises them.

The store is no actor.  Every command is executed by a plain handler, which nothing can interrupt,
and all actors share one thread; so a connection's actor may call the store, and its client need not
wait for a message there and one back.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from typing import TYPE_CHECKING, Any, Never, cast

from stackmap.actor import ActorSystem, Child, ConnectionActor, Listener
from stackmap.codec.memcached import Invalid, Reply, Request
from stackmap.servers.drain import GRACE

from .client_codec import ClientCodec
from .hosting import AsyncioServer

if TYPE_CHECKING:
    import asyncio
    import socket

    from .hosting import Connected


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
                sockets.close()  # clients that connect meanwhile are refused
                killed_before = system.killed
        self.cut_off += system.killed - killed_before

    def _listener(self, sock: socket.socket) -> Listener[Request | Invalid, Reply]:
        return Listener(
            lambda: ClientActor(self),
            sock,
            capacity=1,
            codec=ClientCodec,
            max_connections=self.max_connections,
            shutdown=GRACE,
        )

    def connected(self) -> list[Connected]:
        """The connections, and those whose last replies are not sent yet."""
        return list(self.actors)

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
        stream = self.stream
        self.sock = stream.transport.get_extra_info("socket")
        self.codec = cast("ClientCodec", stream.codec)
        self._server.add(self)
        self._server.actors.add(self)
        stream.active(True)

    def received(self, message: Request | Invalid) -> None:
        """Execute a command, and send its reply."""
        self.heard = self._store.now
        self.send(self._execute(message))

    @property
    def held(self) -> int:
        """Bytes of commands that were received and not executed."""
        return self.stream.held if self.has_stream else 0

    @property
    def pending(self) -> int:
        """Bytes of replies that TCP has not taken."""
        return self.stream.pending if self.has_stream else 0

    def look_again(self) -> None:
        """Go on, because the codec has a message although nothing came."""
        self.stream.look_again()

    def abort(self) -> None:
        """Disconnect the client at once, with RST."""
        if self.has_stream:
            self.stream.abort()

    def on_stop(self, reason: BaseException | None) -> None:  # noqa: ARG002 (as of the base class)
        """The connection has ended, or nothing more comes on it."""
        if self.sock is not None:
            self._server.remove(self)
