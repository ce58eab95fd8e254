"""The other end of a connection, as a service sees it."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

from stackmap import reset_transport

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from stackmap import Connection
    from stackmap.codec import Codec

_peer: contextvars.ContextVar[Peer | None] = contextvars.ContextVar("stackmap_peer", default=None)


class Peer:
    """A client's connection: who it is, and how to hang up.

    Attributes:
        codec: this end of the protocol.
        peername: the client's address, as of ``getpeername()``.
        sockname: the server's address, as of ``getsockname()``.
        connection: the connection on a StackMap port; None on an ordinary socket.
    """

    __slots__ = ("_hang_up", "_pending", "_transport", "codec", "connection", "look_again",
                 "peername", "sockname")  # fmt: skip

    def __init__(
        self,
        transport: asyncio.Transport,
        codec: Codec[Any, Any],
        *,
        hang_up: Callable[[], None],
        look_again: Callable[[], None],
        pending: Callable[[], int],
    ) -> None:
        self._transport = transport
        self._hang_up = hang_up
        self._pending = pending
        self.codec = codec
        #: Serve what the codec has, although nothing came: it was changed from outside.
        self.look_again = look_again
        self.peername: Any = transport.get_extra_info("peername")
        self.sockname: Any = transport.get_extra_info("sockname")
        self.connection: Connection | None = transport.get_extra_info("stackmap.connection")

    def __repr__(self) -> str:
        return f"<Peer {self.peername}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport knows, as of :meth:`asyncio.BaseTransport.get_extra_info`."""
        return self._transport.get_extra_info(name, default)

    @property
    def pending(self) -> int:
        """Bytes that were written, and that TCP has not taken."""
        return self._pending()

    def close(self) -> None:
        """Hang up after the reply to the current request, if there is one.

        Requests that came behind it are not served.
        """
        self._hang_up()

    def abort(self) -> None:
        """Disconnect the client at once, with RST: it must not take half a reply for a whole one.

        What was not sent to it is dropped.
        """
        reset_transport(self._transport)


def current_peer() -> Peer | None:
    """The client whose request is being served; None outside of a server."""
    return _peer.get()


def enter_peer(peer: Peer) -> None:
    """Make a peer the current one of the running context."""
    _peer.set(peer)
