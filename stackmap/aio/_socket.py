"""The socket that ``get_extra_info("socket")`` returns."""

from __future__ import annotations

from asyncio import trsock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackmap import Connection


class TransportSocket(trsock.TransportSocket):
    """asyncio's view of a socket, with addresses that outlive the connection.

    A port closes the socket of a connection that has failed before the protocol is told, and
    perhaps before its ``connection_made()``.  Protocols ask for addresses and set options there,
    and rely on it that asyncio closes a socket only after ``connection_lost()``.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.sock)
        self._connection = connection

    def getsockname(self) -> Any:
        """The own address."""
        if self.fileno() < 0 and self._connection.sockname is not None:
            return self._connection.sockname
        return super().getsockname()

    def getpeername(self) -> Any:
        """The peer's address.

        Raises:
            OSError: the connection had failed when it was made.
        """
        if self.fileno() < 0 and self._connection.peername is not None:
            return self._connection.peername
        return super().getpeername()

    def setsockopt(self, *args: Any, **kwargs: Any) -> None:
        """Set an option; once the socket is closed, none has an effect any more.

        Raises:
            OSError: TCP refuses the option.
        """
        if self.fileno() >= 0:
            super().setsockopt(*args, **kwargs)
