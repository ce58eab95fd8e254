"""The second backend: the same ports and connections on ordinary non-blocking sockets.

It needs no module and no rights, and it is the baseline of every measurement, so it is written
the way a good epoll server is: level triggered, one ``recv`` per ready connection and exchange,
``send`` at once and ``EPOLLOUT`` only while something is queued, and no system call to change an
interest that has not changed.

Each ``recv`` makes a new ``bytes``, which is then shown through a view.  Receiving into a pool of
preallocated buffers was measured and costs the same; this way a view can never show other data.
"""

from __future__ import annotations

import errno
import select
import selectors
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ._attach_errors import attach_error
from ._connect import start_connecting
from ._connection import SIOCOUTQ, Address, Buffer, Connection, Kept
from ._event import Event
from ._fast import Segment
from ._in_use import release_unless_in_use, warn_in_use
from ._port import Listener, Port, PortStats
from ._watch import Watches
from .errors import (
    BrokenError,
    BusyError,
    ClosedError,
    WouldBlockError,
    make_error,
    port_closed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._watch import HasFileno

#: Bytes taken from one connection per exchange: the bound that keeps a fast sender from starving
#: the others.
READ_SIZE = 65536
#: Ready descriptors handled per exchange; the rest are still ready at the next one.  With
#: READ_SIZE it bounds what an exchange takes in memory, 16 MB.
MAX_READY = 256

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_ERR = select.EPOLLERR
_HUP = select.EPOLLHUP
_FAILED = _ERR | _HUP
#: Nothing but failures, and each once: epoll goes on to say that both directions are shut down.
_NEWS = select.EPOLLET
_RDHUP = select.EPOLLRDHUP
_UNREGISTERED = -1
_NO_EVENT = Event.NONE
#: ioctls for numbers of bytes: received, not acknowledged, and not sent yet.
_FIONREAD, _SIOCOUTQNSD = 0x541B, 0x894B

# A report of an acknowledgement is a timestamp of it (linux/net_tstamp.h, linux/errqueue.h).
_SO_TIMESTAMPING = 37
_TX_ACK = 1 << 9
#: Timestamps are reported by the number of their last byte, and without payload.
_REPORTING = struct.pack("=I", 1 << 4 | 1 << 7 | 1 << 11)  # SOFTWARE, OPT_ID, OPT_TSONLY
_STAMP = (socket.SOL_SOCKET, _SO_TIMESTAMPING, struct.pack("=I", _TX_ACK))
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_ORIGIN_TIMESTAMPING, _STAMPED_BY_ACK = 4, 2


class _AttachedSocket(socket.socket):
    """The class of an attached socket: payload goes through the port, as it must on rings."""

    __slots__ = ()

    def _refuse(self, *_arguments: Any, **_options: Any) -> NoReturn:
        raise make_error(BusyError, errno.EBUSY)

    recv = recv_into = recvfrom = recvfrom_into = recvmsg = recvmsg_into = _refuse
    send = sendall = sendto = sendmsg = sendfile = _refuse


def _has_failed(sock: socket.socket) -> bool:
    """Whether an error waits for the next call on the socket, which this is not."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(ready & select.POLLERR for _fd, ready in poll.poll(0))


class SocketConnection(Connection):
    """One TCP connection on its own socket."""

    __slots__ = (
        "_connecting",
        "_fd",
        "_interest",
        "_port",
        "_read_done",
        "_recv",
        "_recvmsg",
        "_reported_from",
        "_send_now",
        "_sendmsg",
        "_stamping",
        "_timeout",
    )

    def __init__(
        self,
        port: SocketPort,
        sock: socket.socket,
        peername: Address | None,
        *,
        connecting: bool = False,
    ) -> None:
        super().__init__(sock, sock.fileno(), peername)
        self._connecting = connecting
        if connecting:
            self._waiting.append(memoryview(b""))  # so that what is written, and the end, waits
        else:
            self._sockname = sock.getsockname()
        self._timeout = sock.gettimeout()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = port
        self._fd = sock.fileno()
        self._recv = sock.recv
        self._send_now = sock.send
        self._recvmsg = sock.recvmsg
        self._sendmsg = sock.sendmsg
        # Sent bytes are to be reported; the kernel numbers them from this one, once it does.
        self._stamping = False
        self._reported_from: int | None = None
        self._interest = _UNREGISTERED
        self._read_done = False
        if type(sock) is socket.socket:
            sock.__class__ = _AttachedSocket

    def writelines(self, parts: Iterable[Buffer]) -> None:
        """Send several buffers in order, in one ``send``."""
        self.write(b"".join(parts))

    def close(self) -> None:
        """Close after everything written so far has been handed to TCP.  Idempotent.

        What the peer still sends is not delivered any more.
        """
        super().close()
        self._update_interest()

    # -- required by Connection --

    def _send(self, data: Buffer) -> int:
        if self._failure:
            return len(data)
        try:
            if self._stamping or self._report_due:
                taken = self._send_stamped(data)
            else:
                taken = self._send_now(data)
        except BlockingIOError:
            return 0
        except OSError as failure:
            self._fail(failure.errno or errno.EIO)
            return len(data)
        self._port._bytes_tx += taken
        return taken

    def _send_stamped(self, data: Buffer) -> int:
        """Send ``data``, and have the kernel report when it is acknowledged."""
        if self._reported_from is None:
            # In a flush, data is still counted as waiting.
            handed_over = self.bytes_written - max(self.pending, len(data))
            unacknowledged = -1
            while unacknowledged != (now := self._queue_size(SIOCOUTQ)):
                # The kernel counts from the first byte that is not acknowledged now.
                unacknowledged = now
                self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, bytes(4))
                self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _REPORTING)
            self._reported_from = handed_over - unacknowledged
        return self._sendmsg([data], [_STAMP])

    def _take_reports(self) -> bool:
        """Take what the kernel reports; True if something was acknowledged."""
        acknowledged = False
        while True:
            try:
                _data, messages, _flags, _address = self._recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except OSError:  # no more
                return acknowledged
            for _level, _type, content in messages:
                if len(content) < _EXTENDED_ERROR.size:
                    continue
                error = _EXTENDED_ERROR.unpack_from(content)
                _code, origin, _kind, _pad1, _pad2, info, last = error
                if origin == _ORIGIN_TIMESTAMPING and info == _STAMPED_BY_ACK:
                    # The kernel's number has 32 bits.
                    end = (self._reported_from or 0) + last + 1
                    end += (self.bytes_written - end) >> 32 << 32
                    self._acknowledged(end)
                    acknowledged = True

    def _queue(self, data: bytes) -> None:
        super()._queue(data)
        self._update_interest()

    def _send_fin(self) -> None:
        if not self._failure:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as failure:
                self._fail(failure.errno or errno.EIO)

    def _release(self) -> None:
        if not self._released:
            self.sockname  # noqa: B018 (it is kept)
            self._port._forget(self)
            self._released = True
            self.sock.close()
            self._port._announce(self, Event.CLOSED)

    def _reset(self) -> None:
        self._release()

    def _apply_pause(self) -> None:
        self._update_interest()

    def _apply_credits(self, more: int | None) -> None:  # noqa: ARG002 (counted here)
        self._update_interest()

    def _prepare_report(self) -> None:
        self._stamping = True

    def _request_report(self) -> None:
        self._stamping = False  # all that was sent in between is stamped

    def _report_written(self) -> bool:
        return False  # the kernel reports what was stamped when it was sent

    def _unsent_by_backend(self) -> int:
        return self._queue_size(_SIOCOUTQNSD)

    @property
    def unsynced(self) -> int:
        """See :attr:`Connection.unsynced`."""
        return 0

    # -- readiness --

    @property
    def _receiving(self) -> bool:
        """Whether the application wants what the peer may still send."""
        return not (self._paused or self._read_done or self._closing or self._connecting)

    @property
    def _reading(self) -> bool:
        """Whether it is read from."""
        return self._credits != 0 and self._receiving

    def _fail(self, code: int) -> None:
        """Remember that sending failed.

        The error is announced by a later exchange, after what the peer sent before it.
        """
        self._failure = code
        self._dropped = True
        self._port._failed.append(self)
        self._port._look_after()

    def _update_interest(self) -> None:
        """Tell epoll which events are wanted now, if that has changed."""
        if self._released:
            return
        interest = _IN if self._reading else 0
        if self._credits == 0 and self._receiving:
            interest = _RDHUP | _NEWS  # the end of the stream needs no credit
        if self._waiting:
            interest |= _OUT
        self._set_interest(interest)

    def _set_interest(self, interest: int) -> None:
        if interest != self._interest:
            epoll = self._port._epoll
            if interest == _UNREGISTERED:
                epoll.unregister(self._fd)
            elif self._interest == _UNREGISTERED:
                epoll.register(self._fd, interest)
            else:
                epoll.modify(self._fd, interest)
            self._interest = interest


class SocketListener(Listener):
    """A listening socket that attaches the connections that it accepts."""

    __slots__ = ("_port",)

    def __init__(self, port: SocketPort, sock: socket.socket) -> None:
        super().__init__(sock)
        self._port = port

    def accept(self) -> SocketConnection:
        """Accept one connection, and attach it; see :meth:`Listener.accept`."""
        sock, _address = self.sock.accept()
        try:
            return self._port.attach(sock)
        except OSError:
            sock.close()
            raise

    def close(self) -> None:
        """Stop listening.  Connections that were accepted live on.  Idempotent."""
        if self in self._port._listeners:
            self._port._listeners.remove(self)
        self.sock.close()


class SocketPort(Port):
    """A port whose connections are ordinary sockets, waited for with epoll."""

    backend: ClassVar[str] = "sockets"

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches = Watches(self._epoll)
        self._connections: dict[int, SocketConnection] = {}
        self._listeners: list[SocketListener] = []
        self._lent: list[Segment] = []
        self._buffers: list[bytes] = []
        self._events: list[Segment] = []
        self._held: list[Segment] = []  # of an exchange that a callback's exception ended
        self._failed: list[SocketConnection] = []
        self._polled = False  # by another loop, which waits for fileno()
        self._bytes_rx = 0
        self._bytes_tx = 0

    def __repr__(self) -> str:
        state = "closed" if self._epoll.closed else f"{len(self._connections)} connections"
        return f"<SocketPort, {state}>"

    # -- the contract --

    @property
    def connections(self) -> list[Connection]:
        """The connections that are not closed; see :meth:`Port.connections`."""
        return list(self._connections.values())

    @property
    def closed(self) -> bool:
        """The port is closed."""
        return self._epoll.closed

    def fileno(self) -> int:
        """A descriptor for other loops to wait for; see :meth:`Port.fileno`."""
        self._check_open()
        self._polled = True
        return self._epoll.fileno()

    def attach(self, sock: socket.socket) -> SocketConnection:
        """Take over the payload of an established TCP connection.

        The socket becomes non-blocking, and TCP_NODELAY is set.

        Raises:
            BusyError: ``EALREADY`` (attached here before).
            ClosedError: the port is closed, or the socket.
            OSError: ``EOPNOTSUPP`` (not TCP), ``EINVAL`` (listening), ``ENOTCONN``.
        """
        self._check_attachable(sock, listener=False)
        peername = None
        try:
            peername = sock.getpeername()
        except OSError as failure:
            # Reset meanwhile, perhaps even before accept() returned it: its events will say so.
            if not _has_failed(sock):
                raise attach_error(failure.errno or errno.EIO) from failure
        return self._add(SocketConnection(self, sock, peername))

    def connect(self, address: tuple[str, int]) -> SocketConnection:
        """Begin to connect, and attach the connection; see :meth:`Port.connect`."""
        self._check_open()
        sock, peername, code = start_connecting(address)
        connection = self._add(SocketConnection(self, sock, peername, connecting=True))
        if code:
            connection._fail(code)
        return connection

    def _add(self, connection: SocketConnection) -> SocketConnection:
        connection._update_interest()
        self._connections[connection._fd] = connection
        return connection

    def detach(self, connection: Connection) -> None:
        """Make the connection's socket an ordinary one again; see :meth:`Port.detach`.

        It blocks, or has a timeout, as it had when it was attached.
        """
        self._check_open()
        if not isinstance(connection, SocketConnection) or connection._port is not self:
            raise ValueError(f"{connection!r} is of another port or another ring")
        if connection._released or connection._failure:
            raise make_error(
                BrokenError if connection._failure else ClosedError,
                errno.ENOENT,
                "the connection is gone",
            )
        if connection._waiting:
            raise make_error(WouldBlockError, errno.EAGAIN, "the connection has unsent data")
        self._forget(connection)
        connection._released = connection._shutdown = True
        sock = connection.sock
        if type(sock) is _AttachedSocket:
            socket.socket.__setattr__(sock, "__class__", socket.socket)
        sock.settimeout(connection._timeout)
        self._announce(connection, Event.CLOSED)

    def attach_listener(self, sock: socket.socket) -> SocketListener:
        """Attach the connections that a listening socket accepts; see :meth:`Port.attach_listener`.

        Raises:
            BusyError: ``EALREADY`` (attached here before).
            ClosedError: the port is closed, or the socket.
            OSError: ``EOPNOTSUPP`` (not TCP), ``EINVAL`` (not listening).
        """
        self._check_attachable(sock, listener=True)
        listener = SocketListener(self, sock)
        self._listeners.append(listener)
        return listener

    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        """Return everything received (at most 64 KiB per connection); see :meth:`Port.exchange`."""
        self._check_open()
        if self._held:
            held, self._held = self._held, []
            return held
        if self._lent:
            self._take_back()
        if self._failed:
            self._report_failures()
        segments, self._events = self._events, []
        if segments:
            timeout = 0.0
        elif timeout is None:
            timeout = -1
        try:
            self._receive(self._epoll.poll(timeout, MAX_READY), segments)
        except BaseException:  # of a callback, or of a signal's handler
            self._held = segments
            self._look_after()
            raise
        return segments

    def _receive(self, events: list[tuple[int, int]], segments: list[Segment]) -> None:
        """Handle events of epoll."""
        connections = self._connections
        lent = self._lent
        buffers = self._buffers
        watched: list[int] | None = None
        received = 0
        for fd, ready in events:
            connection = connections.get(fd)
            if connection is None:
                if watched is None:
                    watched = []
                watched.append(fd)
                continue
            if ready != _IN and not self._attend(connection, ready, segments):
                continue
            try:
                data = connection._recv(READ_SIZE)
            except BlockingIOError:
                continue
            except OSError as failure:
                self._end(connection, failure.errno or errno.EIO, segments)
                continue
            if data:
                received += len(data)
                segment = Segment(connection, memoryview(data), _NO_EVENT, 0)
                segments.append(segment)
                lent.append(segment)
                buffers.append(data)
                if connection._credits is not None:
                    connection._credits -= 1
                    connection._update_interest()
            elif connection._failure:
                self._end(connection, connection._failure, segments)
            else:
                connection._read_done = True
                connection._update_interest()
                segments.append(Segment(connection, memoryview(b""), Event.EOF, 0))
        self._bytes_rx += received
        if self._events:
            # A queue that emptied in this exchange released its socket.
            segments.extend(self._events)
            self._events.clear()
        if watched is not None:
            self._watches.run(watched)

    def flush(self) -> None:
        """Do nothing: all that TCP takes was sent at once; see :meth:`Port.flush`."""
        self._check_open()

    def flush_from_outside(self) -> None:
        """Do nothing: all that TCP takes was sent at once; see :meth:`Port.flush_from_outside`."""

    def wakeup(self) -> None:
        """End the wait of :meth:`exchange`; see :meth:`Port.wakeup`."""
        self._watches.wake()

    def keep(self, segment: Segment, *, copy: bool = True) -> Kept:
        """Have the payload of a segment stay valid; see :meth:`Port.keep`.

        Nothing is copied: what was received is an object of its own.
        """
        for number, lent in enumerate(self._lent):
            if lent is segment:
                len(segment.view)  # raises if it is released
                segment.view.release()
                del self._lent[number]
                return Kept(segment.connection, memoryview(self._buffers.pop(number)))
        return super().keep(segment, copy=copy)

    def watch(
        self,
        file: HasFileno | int,
        callback: Callable[[], object],
        events: int = selectors.EVENT_READ,
    ) -> None:
        """Call ``callback`` whenever ``file`` is ready; see :meth:`Port.watch`."""
        self._watches.add(file, callback, events)

    def unwatch(self, file: HasFileno | int) -> None:
        """Stop watching ``file``; see :meth:`Port.unwatch`."""
        self._watches.remove(file)

    def stats(self) -> PortStats:
        """Payload bytes received and sent since the port was opened."""
        return PortStats(socket_rx_bytes=self._bytes_rx, socket_tx_bytes=self._bytes_tx)

    def close(self) -> None:
        """Close the port and the sockets of its connections.  Idempotent.

        What connections still had queued is dropped; views that are not in use elsewhere are
        released.
        """
        for segment in self._lent:
            release_unless_in_use(segment.view)
        self._lent.clear()
        self._buffers.clear()
        self._held.clear()
        for listener in list(self._listeners):
            listener.close()
        for connection in list(self._connections.values()):
            connection._begin_closing()
            connection._drop_queue()
            connection._release()
        self._events.clear()
        self._watches.close()

    # -- operations that fail --

    def _check_open(self) -> None:
        if self._epoll.closed:
            raise port_closed()

    def _check_attachable(self, sock: socket.socket, *, listener: bool) -> None:
        self._check_open()
        fd = sock.fileno()
        if fd < 0:
            raise attach_error(errno.EBADF)
        if (
            sock.family not in (socket.AF_INET, socket.AF_INET6)
            or sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_TCP
        ):
            raise attach_error(errno.EOPNOTSUPP)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != listener:
            raise attach_error(errno.EINVAL, listener=listener)
        if fd in self._connections or any(known.sock is sock for known in self._listeners):
            raise attach_error(errno.EALREADY)

    # -- buffers --

    def _take_back(self) -> None:
        """Release the views of the previous exchange."""
        lent = self._lent
        buffers = self._buffers
        while lent:
            segment = lent.pop()
            data = buffers.pop()
            # Referenced by us and as the argument; anything more is a slice of the view.
            if not release_unless_in_use(segment.view) or sys.getrefcount(data) > 2:
                warn_in_use([segment.connection])

    # -- readiness other than "data is here" --

    def _attend(self, connection: SocketConnection, ready: int, segments: list[Segment]) -> bool:
        """Handle writability and failure; True if the connection is to be read from as well."""
        if connection._connecting:
            self._finish_connecting(connection, segments)
            return False
        if ready & _ERR and connection._reported_from is not None:
            if connection._take_reports() and not connection._closing:
                segments.append(Segment(connection, memoryview(b""), Event.ACKED, 0))
            if not _has_failed(connection.sock):
                ready &= ~_ERR
        if ready & _FAILED and not connection._interest & _IN:
            failure = connection._failure
            failure = failure or connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                self._end(connection, failure, segments)
                return False
        # After HUP nothing can be sent, and a try would take the error that recv() is to tell.
        if connection._waiting and not ready & _HUP:
            self._send_queued(connection, segments)
            if connection._released:
                return False
        if ready & _RDHUP and connection._credits == 0 and connection._receiving:
            # The next credit finds what is received, and the end behind it.
            return not connection._queue_size(_FIONREAD)
        if not ready & _FAILED:
            return bool(ready & _IN)
        if connection._interest & _IN:
            return True  # received data comes first
        if ready & _HUP and (connection._read_done or connection._closing):
            connection._drop_queue()
            connection._release()  # both directions have ended
        else:
            connection._set_interest(connection._interest & _OUT | _NEWS)
        return False

    def _send_queued(self, connection: SocketConnection, segments: list[Segment]) -> None:
        """Send from a connection's queue; tell the application if it may write again."""
        connection._flush()
        connection._update_interest()
        if connection._sank_to_low() and not connection._failure:
            segments.append(Segment(connection, memoryview(b""), Event.WRITABLE, 0))

    def _finish_connecting(self, connection: SocketConnection, segments: list[Segment]) -> None:
        """Tell whether connect() has succeeded."""
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._end(connection, code, segments)
            return
        connection._connecting = False
        segments.append(Segment(connection, memoryview(b""), Event.OPEN, 0))
        self._send_queued(connection, segments)

    def _look_after(self) -> None:
        """Have another loop that waits for this port call exchange()."""
        if self._polled:
            self._watches.wake()

    def _report_failures(self) -> None:
        """Announce sends that failed, after data that was received before."""
        failed, self._failed = self._failed, []
        for connection in failed:
            if connection._released:
                continue
            if connection._reading:
                try:
                    data = connection._recv(READ_SIZE)
                except BlockingIOError:
                    data = b""
                except OSError as failure:
                    connection._failure = failure.errno or errno.EIO
                    data = b""
                if data:
                    self._bytes_rx += len(data)
                    segment = Segment(connection, memoryview(data), _NO_EVENT, 0)
                    self._events.append(segment)
                    self._lent.append(segment)
                    self._buffers.append(data)
                    self._failed.append(connection)
                    continue
            self._end(connection, connection._failure, self._events)

    def _end(self, connection: SocketConnection, code: int, segments: list[Segment]) -> None:
        """The connection failed: say how, and close it."""
        segments.append(Segment(connection, memoryview(b""), Event.ERROR, code))
        connection._failure = code
        connection._closing = True
        connection._drop_queue()
        connection._release()

    def _announce(self, connection: SocketConnection, event: Event) -> None:
        self._events.append(Segment(connection, memoryview(b""), event, 0))
        self._look_after()

    def _forget(self, connection: SocketConnection) -> None:
        connection._set_interest(_UNREGISTERED)
        del self._connections[connection._fd]
