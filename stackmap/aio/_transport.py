"""The transport of a connection that is attached to a port.

It behaves as asyncio's own transport of a socket does (``asyncio/selector_events.py``), of which
every rule here is taken: order of callbacks, flow control, what is logged.  Where a rule looks
arbitrary, that is where it comes from.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import sys
import warnings
from asyncio import constants, transports
from asyncio.log import logger
from typing import TYPE_CHECKING, Any, cast

from stackmap import ClosedError, Event, Segment
from stackmap._fast import deliver_data, usual_transport_write, usual_transport_writelines
from stackmap.errors import make_error

from ._socket import TransportSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from stackmap import Connection

Buffer = bytes | bytearray | memoryview
_BUFFERS: tuple[type[Any], ...] = (bytes, bytearray, memoryview)
#: Since this version a server keeps its transports.
_SERVER_KEEPS_TRANSPORTS = sys.version_info >= (3, 13)
#: Of PortTransport._takes, for stackmap/_fast_transport.c: what its protocol receives.
_TAKES_BYTES, _TAKES_BUFFERS, _TAKES_SEGMENTS = 0, 1, 2
#: Seconds between two tries while the kernel is short of buffers.
_SHORTAGE = 0.001
#: Seconds between two looks at what TCP has not been acknowledged, where no event tells.
_ACK_LOOK_MIN, _ACK_LOOK_MAX = 0.001, 0.05


# asyncio has its flow control and its choices for sendfile() under private names only.
class PortTransport(
    transports._FlowControlMixin,  # pyright: ignore[reportPrivateUsage]
    asyncio.Transport,
):
    """The transport of one connection of a port.

    ``get_extra_info()`` knows, besides ``socket``, ``sockname`` and ``peername``:

    - ``stackmap.connection``: the :class:`stackmap.Connection`.  Its ``app`` is the transport.
      Reading and writing is the transport's; ``grant()``, ``forward()`` and ``tcp_state()`` may be
      used.
    - ``stackmap.port``: the loop's :class:`stackmap.Port`.
    """

    __slots__ = (
        "__weakref__",
        "_acknowledging",
        "_closing",
        "_conn_lost",
        "_connection",
        "_context",
        "_eof",
        "_file_sender",
        "_held",
        "_paused",
        "_port",
        "_protocol",
        "_server",
        "_sock_fd",
        "_takes",
    )

    _start_tls_compatible = True
    #: "Native" is refused by the loop, with the exception that is documented for it.
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE  # pyright: ignore[reportPrivateUsage]

    if TYPE_CHECKING:  # of the base classes, whose types do not have them
        _extra: dict[str, Any]
        _high_water: int
        _low_water: int
        _protocol_paused: bool
        _maybe_pause_protocol: Callable[[], None]
        _maybe_resume_protocol: Callable[[], None]
    #: The EventLoop, whose module imports this one.
    _loop: Any

    def __init__(
        self,
        loop: Any,
        connection: Connection,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> None:
        if server is not None:
            # It raises if the server was closed since the connection was accepted; the transport
            # has nothing then.
            server._attach(*[self] * _SERVER_KEEPS_TRANSPORTS)
        #: A Connection; None once connection_lost() has been called.
        self._connection: Any = connection
        self._port = loop.port
        super().__init__(extra, loop)
        self._extra["socket"] = TransportSocket(connection)
        self._extra["sockname"] = connection.sockname
        self._extra.setdefault("peername", connection.peername)
        self._extra["stackmap.connection"] = connection
        self._extra["stackmap.port"] = loop.port
        self._sock_fd = connection.sock.fileno()
        #: Callbacks run in it: the context that the transport was made in.
        self._context = contextvars.copy_context()
        self._eof = False  # write_eof() was called
        #: The task that sends a file, and writes alone meanwhile.
        self._file_sender: asyncio.Task[Any] | None = None
        self._closing = False  # close() or abort() was called, or it failed
        self._conn_lost = 0  # connection_lost() is called or will be; then counts writes
        self._paused = False
        #: What arrived while reading was paused, or was not delivered when it was.
        self._held: collections.deque[Segment] = collections.deque()
        self._acknowledging: list[tuple[int, asyncio.Future[None]]] = []
        self.set_protocol(protocol)
        self._server = server
        loop._transports[self._sock_fd] = self
        connection.app = self
        # Nothing can be delivered before connection_made(): the next exchange is after it.
        loop.call_soon(protocol.connection_made, self, context=self._context)
        if waiter is not None:
            loop.call_soon(_finish, waiter)

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._connection is None:
            info.append("closed")
        elif self._closing:
            info.append("closing")
        info.append(f"fd={self._sock_fd}")
        if self._connection is not None:
            info.append("read=idle" if self._paused else "read=polling")
            size = self.get_write_buffer_size()
            info.append(f"write=<{'polling' if size else 'idle'}, bufsize={size}>")
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if getattr(self, "_connection", None) is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            if not self._port.closed:
                self._connection.close()

    @property
    def _sock(self) -> socket.socket | None:
        return None if self._connection is None else self._connection.sock

    # -- asyncio.BaseTransport --

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol called from now on."""
        self._protocol: Any = protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            self._takes = _TAKES_BUFFERS
        elif hasattr(protocol, "segments_received"):  # a SegmentProtocol, or of its shape
            self._takes = _TAKES_SEGMENTS
        else:
            self._takes = _TAKES_BYTES
        if self._connection is not None:
            # Protocols that do not take segments get copies anyway.
            lends = self._takes == _TAKES_SEGMENTS
            usual: int = self._connection._COPY_MAX
            self._connection._copy_max = usual if lends else sys.maxsize

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol, which is None after its connection_lost()."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """It is closing or closed, by the program or because the connection failed."""
        return self._closing

    def close(self) -> None:
        """Close after everything written has been handed to TCP.

        Nothing is received any more.  ``connection_lost(None)`` follows.
        """
        if self._closing or self._connection is None:
            return
        self._closing = True
        self._held.clear()
        if self._connection.pending:
            self._connection.pause_reading()  # for as long as that takes
        self._loop.call_soon(self._finish_closing, context=self._context)

    def abort(self) -> None:
        """Close without waiting: what TCP has not taken is lost.

        ``connection_lost(None)`` follows.  What TCP has is still sent, as by asyncio's transports.
        """
        self._force_close(None)

    # -- asyncio.ReadTransport --

    def is_reading(self) -> bool:
        """Received data is delivered."""
        return not (self._paused or self._closing)

    def pause_reading(self) -> None:
        """Deliver nothing until resume_reading(): TCP's window closes.  Idempotent."""
        if self._closing or self._paused:
            return
        self._paused = True
        self._connection.pause_reading()
        if self._loop.get_debug():
            logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        """Undo pause_reading().  Idempotent."""
        if self._closing or not self._paused:
            return
        self._paused = False
        self._connection.resume_reading()
        if self._held:
            self._loop.call_soon(self._deliver_held, context=self._context)
        if self._loop.get_debug():
            logger.debug("%r resumes reading", self)

    # -- asyncio.WriteTransport --

    @usual_transport_write
    def write(self, data: Buffer) -> None:
        """Send ``data``, which is copied before this returns.

        What TCP cannot take is queued.  After the connection is lost, it is dropped.

        Raises:
            TypeError: it is not bytes, a bytearray or a memoryview.
            RuntimeError: after write_eof(), or the loop's sendfile() is in progress.
        """
        if not isinstance(data, _BUFFERS):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if self._eof or self._file_sender is not None:
            self._check_writable("write")
        if not data:
            return
        if self._conn_lost:
            self._count_lost_write()
            return
        connection = self._connection
        try:
            connection.write(data)
        except OSError as exc:
            self._fatal_error(exc, "Fatal write error on connection")
            return
        # The public properties cost a call each.
        if (
            connection._failure
            or connection.pending > self._high_water
            or self._loop._thread_id is None
        ):
            self._after_write()

    @usual_transport_writelines
    def writelines(self, list_of_data: Iterable[Buffer | Any]) -> None:
        """Send several buffers, as one write() would: on rings, small ones in one slot.

        Raises:
            TypeError, RuntimeError: as write().  Then nothing is sent.
            ValueError: one of them is a view that was released.  Then nothing is sent.
        """
        parts: list[memoryview] = []
        for part in list_of_data:
            if not isinstance(part, _BUFFERS):
                raise TypeError(
                    f"data argument must be a bytes-like object, not {type(part).__name__!r}"
                )
            parts.append(memoryview(part).cast("B"))
        if self._eof or self._file_sender is not None:
            self._check_writable("writelines")
        if not any(parts):
            return
        if self._conn_lost:
            self._count_lost_write()
            return
        try:
            self._connection.writelines(parts)
        except OSError as exc:
            self._fatal_error(exc, "Fatal write error on connection")
            return
        self._after_write()

    def write_eof(self) -> None:
        """Send FIN after everything written.  The other direction stays open.  Idempotent."""
        if self._closing or self._eof:
            return
        self._eof = True
        self._connection.shutdown_write()
        self._port.flush()

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes that TCP could not take yet.

        On rings, what was written in this turn of the loop is not among them: it is in slots.
        """
        return 0 if self._connection is None else self._connection.pending

    def _set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        super()._set_write_buffer_limits(high, low)  # type: ignore[misc]
        if self._connection is not None:
            self._connection.set_write_limits(
                self._high_water, self._low_water, self._note_exceeded
            )

    def acknowledged(self) -> asyncio.Future[None]:
        """Return a future that is done when the peer's TCP has all that was written so far.

        The peer's application may not have read it.  Ask before anything is awaited after
        the write: on rings an event tells then; otherwise the loop looks every few milliseconds.

        The future fails with what ended the connection, or with ``ClosedError`` if the program
        closed the transport before.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection = self._connection
        if connection is None or self._conn_lost:
            future.set_exception(_lost_before_acknowledged())
        elif not connection.bytes_written - connection.bytes_acked:
            future.set_result(None)
        else:
            self._acknowledging.append((connection.bytes_written, future))
            if not connection.report_written():
                self._look_for_acknowledgement(_ACK_LOOK_MIN)
        return future

    # -- called by the loop --

    def set_file_sender(self, task: asyncio.Task[Any] | None) -> None:
        """Have a task send a file, and write alone meanwhile; None when it has."""
        self._file_sender = task

    def receive_event(self, segment: Segment) -> None:
        """Handle what happened to the connection."""
        event = segment.event
        if event & Event.ACKED and self._acknowledging:
            self._finish_acknowledged()
        if event & Event.WRITABLE:
            self._context.run(self._sank_to_low)
        if event & (Event.EOF | Event.ERROR):
            if self._held:
                self._held.append(segment)  # behind the data
            else:
                self._context.run(self._end_reading, segment)
        if event & Event.CLOSED and self._loop is not None:
            self._forget_descriptor()

    # -- receiving --

    def _deliver_held(self) -> None:
        """Deliver what arrived while reading was paused; it may be paused again meanwhile."""
        held = self._held
        while held and not (self._paused or self._closing):
            segment = held.popleft()
            if segment.event:
                self._end_reading(segment)
            else:
                behind = list(held)
                held.clear()
                deliver_data(self, [segment])
                held.extend(behind)  # behind what was not taken of this one

    def _end_reading(self, segment: Segment) -> None:
        if segment.event & Event.EOF and not self._closing:
            self._receive_eof()
        if segment.event & Event.ERROR and not (self._conn_lost or self._closes_all_the_same()):
            self._fatal_error(cast("Exception", segment.error), "Fatal read error on connection")

    def _closes_all_the_same(self) -> bool:
        """Whether close() was called, and an error only says what TCP did with its last bytes.

        For instance, the peer had closed, and answers them with a reset.  asyncio's transports,
        which hand bytes over within write(), would not look for it any more.
        """
        return self._closing and not self._connection.dropped

    def _receive_eof(self) -> None:
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # noqa: BLE001 (reported)
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    # -- sending --

    def _check_writable(self, method: str) -> None:
        if self._eof:
            raise RuntimeError(f"Cannot call {method}() after write_eof()")
        if asyncio.current_task(self._loop) is not self._file_sender:
            raise RuntimeError("unable to write; sendfile is in progress")

    def _count_lost_write(self) -> None:
        if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("write() to a connection that is lost.")
        self._conn_lost += 1

    def _after_write(self) -> None:
        if self._loop._thread_id is None:
            self._port.flush()  # no turn follows soon
        error = self._connection.send_error
        if error is not None:
            # Without waiting for ERROR: a program that only writes never gives the loop a turn.
            self._fatal_error(error, "Fatal write error on connection")
        elif self._connection.pending > self._high_water:
            self._maybe_pause_protocol()

    def _note_exceeded(self) -> None:
        """TCP gave back what was in slots."""
        self._loop.call_soon(self._pause_if_exceeded, context=self._context)

    def _pause_if_exceeded(self) -> None:
        if not self._conn_lost:
            self._maybe_pause_protocol()

    def _sank_to_low(self) -> None:
        """The queue did in this turn's exchange; it may have grown again since then."""
        if self._closing:
            self._finish_closing()
        else:
            self._maybe_resume_protocol()
        if self._protocol_paused and self._connection is not None:
            self._connection.owe_writable()

    # -- acknowledgements --

    def _finish_acknowledged(self) -> None:
        acknowledged = self._connection.bytes_acked
        while self._acknowledging and self._acknowledging[0][0] <= acknowledged:
            _finish(self._acknowledging.pop(0)[1])

    def _look_for_acknowledgement(self, delay: float) -> None:
        connection = self._connection
        if connection is None or not self._acknowledging:
            return  # it was closed, or an event told
        acknowledged = connection.bytes_written - connection.unacknowledged
        while self._acknowledging and self._acknowledging[0][0] <= acknowledged:
            _finish(self._acknowledging.pop(0)[1])
        if self._acknowledging:
            longer = min(2 * delay, _ACK_LOOK_MAX)
            self._loop.call_later(delay, self._look_for_acknowledgement, longer)

    def _fail_acknowledged(self, exc: BaseException | None) -> None:
        waiting, self._acknowledging = self._acknowledging, []
        for _count, future in waiting:
            if not future.done():
                future.set_exception(exc or _lost_before_acknowledged())
                future.exception()  # it may be waited for by nobody

    # -- the end --

    def _finish_closing(self) -> None:
        """Call connection_lost() if everything is handed to TCP, or else when that is so."""
        connection = self._connection
        if connection is None:
            return
        if not self._conn_lost:
            # The queue may have sunk in this turn's exchange, whose WRITABLE comes after this.
            self._maybe_resume_protocol()  # it may write, or abort
        if self._conn_lost:
            return
        if connection.pending:
            if not self._protocol_paused:
                connection.set_write_limits(0)
            return  # _sank_to_low() comes here again
        if connection.unsynced:
            # The kernel is short of buffers, which acknowledgements give back.
            self._loop.call_later(_SHORTAGE, self._finish_closing, context=self._context)
            return
        self._conn_lost += 1
        self._call_connection_lost(None)

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._loop.call_exception_handler(
                {
                    "message": message,
                    "exception": exc,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
        self._force_close(exc)

    def _force_close(self, exc: BaseException | None) -> None:
        if self._conn_lost or self._connection is None:
            return
        self._conn_lost += 1
        self._closing = True
        self._held.clear()
        self._connection.discard()
        self._loop.call_soon(self._call_connection_lost, exc, context=self._context)

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        connection, server = self._connection, self._server
        self._fail_acknowledged(exc)
        try:
            self._protocol.connection_lost(exc)
        finally:
            if not self._port.closed:
                connection.set_write_limits(0)  # there is nobody to tell any more
                connection.close()
            self._forget_descriptor()
            self._connection = self._protocol = self._server = None
            self._loop = None
            if server is not None:
                server._detach(*[self] * _SERVER_KEEPS_TRANSPORTS)

    def _forget_descriptor(self) -> None:
        """The socket is closed, and its descriptor may be another one's soon."""
        if self._loop._transports.get(self._sock_fd) is self:
            del self._loop._transports[self._sock_fd]


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():  # it may be cancelled
        future.set_result(None)


def _lost_before_acknowledged() -> ClosedError:
    return make_error(
        ClosedError, 9, "the transport was closed before the peer's TCP had everything"
    )


async def acknowledged(writer: asyncio.StreamWriter) -> None:
    """Wait until the peer's TCP has all that was written to a stream so far.

    Call it right after ``writer.write()``, in place of ``drain()`` or before it.

    Raises:
        NotImplementedError: the stream is not carried by a port, or it is through TLS.
        ClosedError: the stream was closed.
        OSError: what ended the connection.
    """
    transport = writer.transport
    if not isinstance(transport, PortTransport):
        raise NotImplementedError(
            f"{transport!r} is not the transport of a port's connection: only these can tell"
        )
    await transport.acknowledged()
