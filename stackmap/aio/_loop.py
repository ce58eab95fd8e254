"""An asyncio event loop whose connections are carried by a port."""

from __future__ import annotations

import asyncio
import collections
import functools
import os
import socket
from asyncio import events, sslproto
from asyncio.log import logger
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from stackmap import Port, open_port
from stackmap._fast import deliver, usual_call_soon

# call_soon() in C makes them.
from ._callback import Callback  # noqa: F401  # pyright: ignore[reportUnusedImport]
from ._selector import PortSelector
from ._transport import PortTransport
from ._watchdog import Watchdog

if TYPE_CHECKING:
    import selectors
    import ssl
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    from stackmap import Segment

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_INTERNET = (socket.AF_INET, socket.AF_INET6)


@dataclass
class LoopStats:
    """Counters of one loop since it was made."""

    #: Transports of connections that were attached to the port.
    attached: int = 0
    #: Transports of asyncio's own, because the socket could not be attached, by the reason.
    fallbacks: collections.Counter[str] = field(default_factory=collections.Counter)


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop, with a port in the place of its selector.

    Each turn of the loop makes one exchange: that sends all that callbacks have written, takes what
    has arrived for all connections, and waits for these and for the loop's other files.  TCP
    connections of ``create_connection()``, ``create_server()``, ``connect_accepted_socket()`` and
    of streams are attached to the port, with TLS or without.  Whatever cannot be attached (Unix
    sockets, UDP, pipes, a socket that another layer of the kernel has) is carried by asyncio's own
    transports; :attr:`stats` counts those, and the ``asyncio`` logger names each at debug level.

    Args:
        port: the port, whose connections are all the loop's.  It stays open when the loop is
            closed, but then has none of the loop's connections watched.  Without it, the loop
            opens one and closes it: ``open_port()`` with the environment's ``STACKMAP_BACKEND``,
            ``STACKMAP_NIC`` and ``STACKMAP_SPIN`` (in seconds).

    Raises:
        BackendUnavailableError, ValueError: as :func:`stackmap.open_port`.

    Attributes:
        port: the port.
        owns_port: closing the loop closes the port.
        stats: counters.
    """

    _closed = True  # until there is a port

    def __init__(self, port: Port | None = None) -> None:
        self.owns_port = port is None
        self.port: Port = _open_port_of_environment() if port is None else port
        self.stats = LoopStats()
        self._watchdog: Watchdog | None = None
        self._port_selector = PortSelector(self.port)
        try:
            super().__init__(self._port_selector)
        except BaseException:
            if self.owns_port:
                self.port.close()
            raise
        self._port_selector.loop = self
        self._port_selector.pending = self._ready  # type: ignore[attr-defined]
        # One handle for all turns: there is at most one delivery in a turn.  What SystemExit or
        # KeyboardInterrupt leaves of it is delivered in the next.
        what = (self._port_selector.segments, self._complain_of_stranger)
        self._delivery = events.Handle(deliver, what, self)

    def run_forever(self) -> None:
        """Run until stop() is called.  What was written is sent before this returns."""
        try:
            super().run_forever()
        finally:
            self._port_selector.waiting = True  # there is no turn to watch over
            if not self.port.closed:
                self.port.flush()

    def close(self) -> None:
        """Close the loop, and the port if the loop has opened it.

        Raises:
            BufferError: a view of received data is still in use elsewhere.
        """
        if self.is_closed() or self.is_running():
            super().close()
            return
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        super().close()
        if self.owns_port:
            self.port.close()

    # -- transports --

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> asyncio.Transport:
        try:
            if sock.family not in _INTERNET:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) not in _INTERNET:
                    raise OSError("only TCP sockets can be attached")  # noqa: TRY301
                # uvicorn's --fd takes any descriptor for a Unix socket's.
                sock = socket.socket(fileno=sock.detach())
                sock.setblocking(False)
            connection = self.port.attach(sock)
        except OSError as error:
            reason = error.strerror or str(error)
            self.stats.fallbacks[reason] += 1
            logger.debug("%r has a transport of asyncio's own: %s", sock, reason)
            base: Any = super()
            usual: asyncio.Transport = base._make_socket_transport(
                sock, protocol, waiter, extra=extra, server=server
            )
            return usual
        try:
            if self._watchdog is None and self.port.backend == "stackmap":
                self._watchdog = Watchdog(self._port_selector)
            transport = PortTransport(
                self, connection, protocol, waiter, extra=extra, server=server
            )
        except BaseException:
            connection.close()  # nobody else has it
            raise
        self.stats.attached += 1
        return transport

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        **timeouts: Any,
    ) -> asyncio.Transport:
        # As the base class, but for the transport below TLS.
        make_protocol: Any = sslproto.SSLProtocol
        ssl_protocol = make_protocol(
            self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts
        )
        transport: asyncio.Transport = ssl_protocol._app_transport
        try:
            self._make_socket_transport(rawsock, ssl_protocol, extra=extra, server=server)
        except BaseException:
            transport.close()
            raise
        return transport

    # -- files --

    async def _sendfile_native(
        self, transp: Any, file: IO[bytes], offset: int, count: int | None
    ) -> int:
        if isinstance(transp, PortTransport):
            raise asyncio.SendfileNotAvailableError("sendfile() is not supported by ports")
        base: Any = super()
        sent: int = await base._sendfile_native(transp, file, offset, count)
        return sent

    async def _sendfile_fallback(
        self, transp: Any, file: IO[bytes], offset: int, count: int | None
    ) -> int:
        if isinstance(transp, PortTransport):
            transp.set_file_sender(asyncio.current_task())
        base: Any = super()
        try:
            sent: int = await base._sendfile_fallback(transp, file, offset, count)
        finally:
            if isinstance(transp, PortTransport):
                transp.set_file_sender(None)
        return sent

    # -- a turn --

    @usual_call_soon
    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Have a callback called in the next turn; see ``asyncio.loop.call_soon()``."""
        handle = super().call_soon(callback, *args, context=context)
        if traceback := handle._source_traceback:  # type: ignore[attr-defined]
            del traceback[-1]  # this method
        return handle

    def _process_events(self, event_list: list[tuple[selectors.SelectorKey, int]]) -> None:
        if self._port_selector.segments:
            self._ready.append(self._delivery)  # type: ignore[attr-defined]
        if event_list:
            super()._process_events(event_list)  # type: ignore[misc]

    def _delivery_failed(self, error: BaseException) -> None:
        """Report it as if the delivery were a callback."""
        self.call_exception_handler(
            {"message": "Exception in a delivery", "exception": error, "handle": self._delivery}
        )

    def _complain_of_stranger(self, segment: Segment) -> None:
        if segment.connection.is_closing():
            return  # by whoever attached it, or by the loop, which could not make its transport
        self.call_exception_handler(
            {
                "message": f"{segment!r}: its connection was attached to the loop's port by "
                "somebody else, and what it receives is lost"
            }
        )


def _open_port_of_environment() -> Port:
    environment = os.environ
    backend: Any = environment.get("STACKMAP_BACKEND", "auto")
    return open_port(
        backend,
        environment.get("STACKMAP_NIC") or None,
        spin=float(environment.get("STACKMAP_SPIN", "0")),
    )


def loop_factory(make_port: Callable[[], Port]) -> Callable[[], EventLoop]:
    """Return a function that makes a loop with a port of its own, for ``asyncio.Runner``.

    The loop closes its port.  For instance, for rings of one NIC that are polled before sleeping::

        loop_factory(lambda: RingPort("eth1", spin=50e-6))

    Args:
        make_port: opens a port.
    """

    def make() -> EventLoop:
        port = make_port()
        try:
            loop = EventLoop(port)
        except BaseException:
            port.close()
            raise
        loop.owns_port = True
        return loop

    return make


def run(main: Coroutine[Any, Any, T], *, port: Port | None = None, debug: bool | None = None) -> T:
    """Run a coroutine as :func:`asyncio.run` does, in an :class:`EventLoop`.

    Args:
        main: the program.
        port: the loop's port; without it, as of :class:`EventLoop`.
        debug: asyncio's debug mode.
    """
    factory = functools.partial(EventLoop, port)
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)
