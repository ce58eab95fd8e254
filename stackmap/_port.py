"""The interface that applications use, the same for each backend.

A :class:`Port` owns the data path of many connections.  Connections are made with ordinary
sockets (``socket``, ``accept``, ``connect``) and handed over with :meth:`Port.attach`; from then
on their payload moves only through :meth:`Connection.write` and :meth:`Port.exchange`.

Two backends implement these classes: rings shared with ``stackmap.ko``
(:class:`stackmap.RingPort`), and non-blocking sockets (:class:`stackmap.SocketPort`).
An application written against this interface runs on both, so it can be written and tested without
the module, and compared with itself.  It is not the best that sockets can do: ``docs/measuring.md``
compares rings with servers that were written for sockets as well.
"""

from __future__ import annotations

import abc
import selectors
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ._connection import Kept

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ._connection import Connection
    from ._fast import Segment
    from ._watch import HasFileno


@dataclass(frozen=True, slots=True)
class PortStats:
    """Counters of one port since it was opened.  Bytes are payload bytes.

    ``socket_*`` are counted by :class:`stackmap.SocketPort` and are zero on rings.  All others are
    counted by the kernel module, under the names that ``stackmap stats``, :mod:`stackmap.inspect`
    and ``kmod/stackmap.yaml`` have for them, and are zero on sockets.
    """

    rx_bytes: int = 0
    tx_bytes: int = 0
    socket_rx_bytes: int = 0
    socket_tx_bytes: int = 0
    #: Transmit slots whose payload TCP accepted.
    slots_sent: int = 0
    #: Transmit buffers released because the peer acknowledged their last byte.
    slots_released_ack: int = 0
    #: Transmit buffers released because the connection was reset or aborted.
    slots_released_reset: int = 0
    #: Transmit buffers that wait for an acknowledgement now.
    bufs_pinned: int = 0
    #: Transmit slots refused for their content (bad length, offset, reserved bits, index or owner),
    #: and receive slots given back with a bad index or owner.
    bad_slots: int = 0
    #: Slots that named a connection which is not attached here.
    unknown_conn: int = 0
    #: Slots given back because their connection could take no more ("try again").
    slots_again: int = 0
    #: Packets that went from TCP to the NIC's queue directly; all others went through IP as well.
    direct_packets: int = 0
    #: Packets that went from the NIC to TCP directly; all others went through IP as well.
    direct_received: int = 0
    #: Times a ring's head or cur was out of range and the ring was reset.
    bad_rings: int = 0


class Listener(abc.ABC):
    """A listening socket whose connections come attached.

    It can be watched: it is readable when :meth:`accept` would not wait.

    Attributes:
        sock: the socket, which the listener owns.
    """

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @abc.abstractmethod
    def accept(self) -> Connection:
        """Accept one connection, attached to the port.  Waits if the socket does.

        A connection that the peer has reset meanwhile is returned like any other; its events say
        what became of it.

        Raises:
            OSError: as of ``socket.accept``, or the connection could not be attached.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop listening.  Connections that were accepted live on.  Idempotent."""

    def __repr__(self) -> str:
        try:
            where = "{0[0]} port {0[1]}".format(self.sock.getsockname())
        except OSError:
            where = "closed"
        return f"<{type(self).__name__}, {where}>"

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.sock.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Port(abc.ABC):
    """The data path of many connections.  One thread uses a port at a time."""

    #: ``"stackmap"`` or ``"sockets"``.
    backend: ClassVar[str]

    @property
    @abc.abstractmethod
    def connections(self) -> list[Connection]:
        """The connections that are not closed, those that :meth:`connect` has begun included.

        On rings, one that a listener accepted is among them once an exchange has named it.
        """

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """The port is closed."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """A descriptor that can be read when :meth:`exchange` would return something.

        It is for other event loops.  Reading from it is not: call ``exchange(0)``.  Such a loop
        calls :meth:`flush` or :meth:`exchange` before it waits, or what was written stays here.

        Raises:
            ClosedError: the port is closed.
        """

    @abc.abstractmethod
    def attach(self, sock: socket.socket) -> Connection:
        """Take over the payload of an established TCP connection.

        The connection owns ``sock`` from here on.  Bytes that arrived before are delivered first.
        A connection that failed before anybody was told, for instance because the peer reset it
        before ``accept()`` returned it, is taken too: ``ERROR`` and ``CLOSED`` follow.

        Raises:
            BusyError: the socket is attached already, or another layer of the kernel has it.
            ClosedError: the port is closed, or the socket.
            OSError: the socket cannot be attached (not TCP, listening, not connected), or the port
                has all the connections that it may have.
        """

    @abc.abstractmethod
    def connect(self, address: tuple[str, int]) -> Connection:
        """Begin to connect to ``address``, and attach the connection when that has succeeded.

        Then ``Event.OPEN`` comes.  If it fails, ``ERROR`` and ``CLOSED`` come, as for any other
        connection.  It can be written to at once; what is written waits in its queue.

        Args:
            address: an IP address, and a port number.

        Raises:
            ClosedError: the port is closed.
            OSError: there is no socket left (``EMFILE``...).
            ValueError: the host is not an IP address; names would have to be waited for.
        """

    @abc.abstractmethod
    def detach(self, connection: Connection) -> None:
        """Make the connection's socket an ordinary one again, which the caller then owns.

        What was written is with TCP by then, and a FIN if it was asked for.  What was received, but
        not delivered, still comes, also if the connection is paused, and then ``Event.CLOSED``;
        everything after it is read from ``connection.sock``.

        Raises:
            BrokenError: the connection has failed.
            ClosedError: the program has closed the connection, or the port.
            WouldBlockError: something that was written has not been handed to TCP yet: exchange,
                and try again.
            ValueError: the connection is of another port or another ring.
        """

    @abc.abstractmethod
    def attach_listener(self, sock: socket.socket) -> Listener:
        """Attach the connections that a listening TCP socket accepts; see :class:`Listener`.

        The listener owns ``sock`` from here on, and :meth:`close` closes it.

        Raises:
            BusyError: the socket is attached already, or another layer of the kernel has it.
            ClosedError: the port is closed, or the socket.
            OSError: the socket is not listening, or not TCP.
        """

    @abc.abstractmethod
    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        """Send everything written, and return everything received, in one go.

        Views of the previous exchange are released first.  One that is still in use elsewhere (a
        slice of it, for instance) goes on to show the same bytes, and its memory is kept; a
        ``ResourceWarning`` says so.

        Waits up to ``timeout`` seconds (for ever when None) if there is nothing to return; watched
        files end the wait early, after their callbacks ran.  A signal does not (PEP 475).  If a
        callback raises, or the handler of a signal that came meanwhile, so does this, and the next
        exchange returns what this one received.  Nothing that happens to a connection is raised:
        its events say it.

        Raises:
            BusyError: another thread is in it.
            ClosedError: the port is closed.
        """

    @abc.abstractmethod
    def flush(self) -> None:
        """Send everything written, as :meth:`exchange` does, and leave all views as they are.

        Raises:
            ClosedError: the port is closed.
        """

    @abc.abstractmethod
    def flush_from_outside(self) -> None:
        """Send everything written, from a thread that does not use the port.

        It is for one that watches over the port's thread, which may have written something and now
        wait for the answer without an exchange.  It does nothing while the port's thread is in a
        call that sends, and on a closed port.  What TCP does not take stays in order: the port's
        thread queues it with its next call that sends.
        """

    @abc.abstractmethod
    def wakeup(self) -> None:
        """End the wait of :meth:`exchange`: of the one that waits now, or else of the next.

        Any thread and the handler of a signal may call this.  On a closed port it does nothing.
        Python runs a handler after the wait if the signal came just before it: a program that waits
        for ever watches the other end of what it gave to :func:`signal.set_wakeup_fd`, as
        :func:`stackmap.service.on_first_signal` does.
        """

    def keep(self, segment: Segment, *, copy: bool = True) -> Kept:
        """Have the payload of a segment stay valid beyond the next exchange.

        The segment's own view is released.  Rings keep the page that holds the payload, from 2049
        bytes on, if it is of this ring and an extra buffer of the port is left.  All else is
        copied.  Sockets copy nothing.

        Args:
            segment: payload of the last exchange.
            copy: whether it may be copied where it cannot be kept otherwise.

        Raises:
            BufferError: it would have to be copied, and may not.  The segment is as before.
            ValueError: the segment's view was released, by an earlier call or by an exchange.
        """
        payload = bytes(segment.view)  # a Kept has no tobytes()
        if not copy:
            raise BufferError(
                "the payload can only be copied: it is of up to 2048 bytes, or of another ring, "
                "or no extra buffer of the port is left"
            )
        kept = Kept(segment.connection, memoryview(payload))
        segment.release()
        return kept

    @abc.abstractmethod
    def watch(
        self,
        file: HasFileno | int,
        callback: Callable[[], object],
        events: int = selectors.EVENT_READ,
    ) -> None:
        """Call ``callback`` from :meth:`exchange` whenever ``file`` is ready.

        Args:
            file: a listener, a timer, a pipe...: whatever has a ``fileno()``, or its descriptor.
                It stays the caller's, who stops watching it before closing it.
            callback: what to call.  It may attach, write, watch and unwatch; what it returns is
                ignored.
            events: ``selectors.EVENT_READ``, ``EVENT_WRITE`` or both: what ``file`` is to be ready
                for.  An error of the file is both.

        Raises:
            BusyError: (``EEXIST``) the file is watched already, or attached.
            ClosedError: the port is closed.
            PermissionError: it is a regular file or a folder, which epoll cannot wait for.
            ValueError: the file is closed, or there are no such events.
        """

    @abc.abstractmethod
    def unwatch(self, file: HasFileno | int) -> None:
        """Stop watching ``file``.

        Raises:
            ClosedError: the port is closed.
            ValueError: it is not watched, or is closed.
        """

    @abc.abstractmethod
    def stats(self) -> PortStats:
        """Counters since the port was opened."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the port and the sockets of its connections.  Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
