"""Listening sockets, and the accepting of connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

#: Where to listen: host and port, the path of a Unix socket, or sockets that are bound.
ListenAddress = tuple[str | None, int] | str | Path | socket.socket | Iterable[socket.socket]

#: Connections that are accepted before others get their turn.
ACCEPTS_PER_TURN = 64
#: Seconds to wait when something is used up that accept() needs, as trio.serve_listeners() does.
RETRY_DELAY = 0.1
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: The peer of this connection has gone, or its packets cannot be accepted: see accept(2).
_OF_ONE_CONNECTION = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    )
)


async def listen(address: ListenAddress, *, backlog: int, reuse_port: bool) -> list[socket.socket]:
    """Make listening sockets.

    Raises:
        OSError: an address cannot be used; the error says which.
        TypeError: it is no address.
    """
    if isinstance(address, socket.socket):
        return _listening([address], backlog)
    if isinstance(address, str | Path):
        return [_listen_unix(str(address), backlog)]
    try:
        items = tuple(address)
        sockets = [item for item in items if isinstance(item, socket.socket)]
        if sockets:
            return _listening(sockets, backlog)
        host, port = cast("tuple[str | None, int]", items)
    except (TypeError, ValueError):
        raise TypeError(
            f"give host and port, a path or sockets as an address, not {address!r}"
        ) from None
    return await _listen_tcp(host, port, backlog=backlog, reuse_port=reuse_port)


def _listening(sockets: list[socket.socket], backlog: int) -> list[socket.socket]:
    for sock in sockets:
        sock.listen(backlog)
        sock.setblocking(False)
    return sockets


def _listen_unix(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket():
            Path(path).unlink()  # of a server that ended; asyncio's does the same
        sock.bind(path)
        return _listening([sock], backlog)[0]
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror}") from None


async def _listen_tcp(
    host: str | None, port: int, *, backlog: int, reuse_port: bool
) -> list[socket.socket]:
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, where in dict.fromkeys((family, where) for family, *_, where in found):
            sock = socket.create_server(
                where[:2], family=family, backlog=backlog, reuse_port=reuse_port
            )
            sockets.append(sock)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        message = f"cannot listen on {host or '*'} port {port}: {error.strerror or error}"
        raise OSError(error.errno, message) from None
    return sockets


class Acceptor:
    """Accepts connections from a listening socket while it is wanted to.

    Args:
        sock: the socket, not blocking; :meth:`close` closes it.
        take: is called with each accepted socket, and may call :meth:`pause`.
    """

    def __init__(self, sock: socket.socket, take: Callable[[socket.socket], object]) -> None:
        self.sock = sock
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._accepting = False
        self._retry: asyncio.TimerHandle | None = None

    @property
    def exhausted(self) -> bool:
        """Something is used up that accept() needs, and it waits."""
        return self._retry is not None

    def start(self) -> None:
        """Accept.  Idempotent."""
        if not self._accepting and self._retry is None:
            self._accepting = True
            self._loop.add_reader(self.sock.fileno(), self._accept)

    def pause(self) -> None:
        """Leave connections in the backlog.  Idempotent."""
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self.sock.fileno())

    def close(self) -> None:
        """Stop listening at once.  Idempotent."""
        self.pause()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accepting:
                return
            try:
                sock, _address = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                if error.errno not in _EXHAUSTED:
                    raise
                log.error(  # noqa: TRY400 (it is clear where it comes from)
                    "cannot accept connections on %s: %s; trying again in %g s",
                    self._where(),
                    error.strerror,
                    RETRY_DELAY,
                )
                self.pause()
                self._retry = self._loop.call_later(RETRY_DELAY, self._try_again)
                return
            sock.setblocking(False)
            self._take(sock)

    def _try_again(self) -> None:
        self._retry = None
        self.start()

    def _where(self) -> object:
        with contextlib.suppress(OSError):
            return self.sock.getsockname()
        return "a closed socket"
