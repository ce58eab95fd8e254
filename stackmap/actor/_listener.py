"""An actor that accepts connections, and supervises the actors that own them."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Never, TypeVar

from stackmap.codec import check_codec_factory

from ._cell import Cell, State
from ._child import Child
from ._mailbox import Overflow
from ._protocol import StreamProtocol
from ._signals import Signal, Stop
from ._supervisor import Supervisor

if TYPE_CHECKING:
    import socket
    import ssl as tls
    from collections.abc import Awaitable, Callable, Sequence

    from stackmap.codec import Codec

    from ._connection import ConnectionActor

log = logging.getLogger("stackmap.actor")

In = TypeVar("In")
Out = TypeVar("Out")

#: Connections accepted in a turn of the loop, so that those that there are get theirs.
_ACCEPTS_PER_TURN = 64
#: accept() fails with these when something is used up that time may give back.
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: Seconds until the next attempt, which double up to the second figure.
_BACK_OFF, _BACK_OFF_MAX = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class _AcceptFailed(Signal):
    """The listening socket is of no use any more."""

    error: OSError


class Listener(Supervisor[Never], Generic[In, Out]):
    """Accepts connections, and has an actor own each of them.

    These actors are its children, and temporary.  When it stops, it accepts no more; then
    all of them stop at the same time, each within its own deadline.

    Args:
        make: makes the actor of a connection, a class or a function.
        sock: a listening socket of any kind; it stays the caller's.  So a listener that is
            restarted listens on the same port.  Close it before the listener is stopped for good:
            clients that connected meanwhile would wait in its backlog.
        capacity: messages that the mailbox of each connection's actor has room for.
        codec: makes the codec of a connection; without one, the actors receive :class:`Payload`.
        max_connections: at so many no more are accepted, and further ones wait in the backlog
            until one has ended.
        overflow: what happens to a message that finds a mailbox full.
        shutdown: seconds that a connection's actor has to stop.
        ssl: speak TLS.
    """

    def __init__(
        self,
        make: Callable[[], ConnectionActor[Any, In, Out]],
        sock: socket.socket,
        *,
        capacity: int,
        codec: Callable[[], Codec[In, Out]] | None = None,
        max_connections: int = 1024,
        overflow: Overflow = Overflow.BLOCK,
        shutdown: float | None = 5.0,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        super().__init__()
        if max_connections < 1:
            raise ValueError(f"max_connections is at least 1, not {max_connections}")
        if codec is not None:
            check_codec_factory(codec)
        self.max_connections = max_connections
        self._child = Child(make, capacity, overflow=overflow, shutdown=shutdown)
        self._codec = codec
        self._ssl = ssl
        self._given = sock
        self._sock: socket.socket | None = None
        self._accepting = False
        self._retry: asyncio.TimerHandle | None = None
        self._back_off = _BACK_OFF
        self._handshakes: set[asyncio.Task[None]] = set()

    def on_start(self) -> Awaitable[None] | None:
        """Begin to accept."""
        self._sock = self._given.dup()
        self._sock.setblocking(False)
        self._accept_more()
        return None

    def on_signal(self, signal: Signal) -> Awaitable[None] | None:
        """Stop accepting at once, or fail."""
        match signal:
            case Stop():
                self._close()
            case _AcceptFailed(error):
                raise error
            case _:
                return super().on_signal(signal)
        return None

    def on_stop(self, reason: BaseException | None) -> Awaitable[None] | None:
        """Close the socket, then stop the connections."""
        self._close()
        return super().on_stop(reason)

    def _close(self) -> None:
        self._accept_no_more()
        if self._retry is not None:
            self._retry.cancel()
        for handshake in self._handshakes:
            handshake.cancel()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    # -- accepting -------------------------------------------------------------------------------

    def _accept_more(self) -> None:
        self._retry = None
        if self._sock is not None and not self._accepting and self._has_room():
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def _accept_no_more(self) -> None:
        if self._accepting and self._sock is not None:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def _has_room(self) -> bool:
        return len(self._cells) + len(self._handshakes) < self.max_connections

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._sock is None:
                return
            if not self._has_room():
                self._accept_no_more()
                return
            try:
                sock, _address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if not self._survives(error):
                    return
                continue
            self._back_off = _BACK_OFF
            sock.setblocking(False)
            handshake = asyncio.get_running_loop().create_task(self._take(sock))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._taken)

    def _survives(self, error: OSError) -> bool:
        """Whether to go on accepting at once after an error of ``accept()``."""
        if error.errno in _EXHAUSTED:
            log.warning(
                "%s cannot accept: %s; it tries again in %g s",
                self.cell.name,
                error,
                self._back_off,
            )
            self._accept_no_more()
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(self._back_off, self._accept_more)
            self._back_off = min(2 * self._back_off, _BACK_OFF_MAX)
            return False
        if error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP):
            self._accept_no_more()
            self.cell.signal(_AcceptFailed(error))
            return False
        return True  # of one connection, that the peer has reset for instance

    async def _take(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: StreamProtocol(self, self._child, self._codec), sock, ssl=self._ssl
            )
        except OSError as error:
            log.debug("%s lost a connection before it was made: %s", self.cell.name, error)
            sock.close()

    def _taken(self, handshake: asyncio.Task[None]) -> None:
        self._handshakes.discard(handshake)
        if not handshake.cancelled() and handshake.exception() is not None:
            log.error("%s cannot take a connection", self.cell.name, exc_info=handshake.exception())
        self._accept_again()

    # -- connections -----------------------------------------------------------------------------

    def _remove(self, cell: Cell[Any], reason: BaseException | None) -> None:
        super()._remove(cell, reason)
        self._accept_again()

    def _accept_again(self) -> None:
        if self._retry is None:
            self._accept_more()

    async def _stop_children(self, cells: Sequence[Cell[Any]]) -> None:
        """Stop all connections at the same time."""
        loop = asyncio.get_running_loop()
        down: list[asyncio.Future[None]] = []
        for cell in cells:
            if cell.state not in (State.DOWN, State.ENDED):
                self._awaited[cell] = loop.create_future()
                down.append(self._awaited[cell])
                cell.begin_stop(final=True)
        for future in down:
            await future
        for cell in cells:
            self._remove(cell, cell.reason)
