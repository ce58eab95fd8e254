"""Run a server of each model until a signal ends it."""

from __future__ import annotations

import abc
import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from stackmap import Event, Port
from stackmap.actor import ActorSystem, Child, ConnectionActor, Listener
from stackmap.aio import EventLoop
from stackmap.service import on_first_signal, on_first_signal_in_loop, run, serve

from .drain import GRACE, drain

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from stackmap import Connection, Segment
    from stackmap.codec import Codec
    from stackmap.service import Service

log = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")


class PortLoop(abc.ABC):
    """A bare loop on a port: accepts, and gives each connection's events to a subclass.

    Args:
        port: the data path; the caller closes it after :meth:`run`.
        sock: a listening socket, which is closed at the end.
    """

    def __init__(self, port: Port, sock: socket.socket) -> None:
        self._port = port
        self._listener = port.attach_listener(sock)
        self._stopping = False
        self._draining = False  # what is received from now on is not answered
        self._accepting = False

    @abc.abstractmethod
    def received(self, segment: Segment) -> None:
        """Handle what a client sent."""

    @abc.abstractmethod
    def writable(self, connection: Connection) -> None:
        """Handle that everything written was sent."""

    @abc.abstractmethod
    def ended(self, connection: Connection) -> None:
        """Handle that a client sends nothing more."""

    def finish(self, connection: Connection) -> None:
        """Send FIN behind the last reply, because the server stops, and wait for the client's."""
        connection.shutdown_write()
        connection.resume_reading()

    def run(self) -> int:
        """Serve until SIGINT or SIGTERM; the second one ends the process.

        Returns:
            The exit code, as of :func:`stackmap.service.run`: 1 if clients were cut off that had
            not taken their replies in time, otherwise 0.
        """
        self._accept_more()
        with on_first_signal(self._stop, self._port.watch, self._port.unwatch):
            while not self._stopping:
                self._exchange(None)
            self._accept_no_more()
            self._listener.close()
            self._exchange(0.0)  # what has arrived
            self._draining = True
            for connection in self._port.connections:
                self.finish(connection)
            cut_off = drain(self._port, self._exchange, lambda connection: not connection.pending)
        return 1 if cut_off else 0

    def _exchange(self, timeout: float | None) -> None:
        for segment in self._port.exchange(timeout):
            if not segment.event:
                if not self._draining:
                    self.received(segment)
                continue
            if segment.event & Event.WRITABLE:
                self.writable(segment.connection)
            if segment.event & Event.EOF:
                self.ended(segment.connection)
            if segment.event & Event.CLOSED and not self._stopping:
                self._accept_more()

    def _accept(self) -> None:
        try:
            self._listener.accept()
        except OSError as error:
            if not self._port.connections:
                raise  # nothing will get better by itself
            log.warning("cannot accept before another connection ends: %s", error)
            self._accept_no_more()

    def _accept_more(self) -> None:
        if not self._accepting:
            self._accepting = True
            self._port.watch(self._listener, self._accept)

    def _accept_no_more(self) -> None:
        if self._accepting:
            self._accepting = False
            self._port.unwatch(self._listener)

    def _stop(self) -> None:
        self._stopping = True


def run_service(
    port: Port,
    sock: socket.socket,
    service: Service[In, Out | None],
    codec: Callable[[], Codec[In, Out]],
) -> int:
    """Serve with a service on an event loop whose connections are the port's, as ``PortLoop``."""
    server = serve([sock], service, codec, grace=GRACE)
    return run(server, loop_factory=functools.partial(EventLoop, port))


def run_actors(
    port: Port,
    sock: socket.socket,
    make: Callable[[], ConnectionActor[Any, In, Out]],
    codec: Callable[[], Codec[In, Out]] | None = None,
) -> int:
    """Serve with an actor for each connection, on such an event loop too."""

    def listener() -> Listener[In, Out]:
        # All connections together have the system's time to stop.
        return Listener(make, sock, capacity=1, codec=codec, shutdown=None)

    async def main() -> int:
        system = ActorSystem(grace=GRACE)

        def stop() -> None:
            sock.close()  # clients that connect meanwhile are refused
            system.stop()

        with on_first_signal_in_loop(stop):
            async with system:
                system.spawn(Child(listener, capacity=1, shutdown=None))
                await system.wait()
        return 1 if system.killed else 0

    with asyncio.Runner(loop_factory=functools.partial(EventLoop, port)) as runner:
        return runner.run(main())
