"""Account for bytes that wait in connections, and choose connections to drop if need be.

Half values, long lines, commands that wait for their turn, and replies that clients do not take
are memory just as items are, and clients decide how much of it there is.  So room is reserved for
it in the store: ``--memory`` bounds all of it together.  More than half of the memory is never
left to it: then the connections that have made no progress for the longest time give up theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .store import Store

#: What a connection may hold without account: an unfinished line, or a small reply.  It is no more
#: than the connection itself takes.
FREE = 2048
#: The reply to a line that had to be given up.
NO_ROOM_FOR_LINE = b"SERVER_ERROR out of memory reading request\r\n"


class Account(Protocol):
    """One connection's account.

    Attributes:
        charged: bytes for which room is reserved in the store.
    """

    charged: int


C = TypeVar("C")


class Waiting(Generic[C]):
    """The connections that hold memory, in the order in which they last made progress."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connections: OrderedDict[C, None] = OrderedDict()

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._connections))

    def account(self, connection: C, account: Account, held: int) -> None:
        """Note how many bytes a connection holds, which has just made progress."""
        if held <= FREE:
            held = 0
            self._connections.pop(connection, None)
        else:
            self._connections[connection] = None
            self._connections.move_to_end(connection)
        self._store.reserve(held - account.charged)
        account.charged = held

    def forget(self, connection: C, account: Account) -> None:
        """The connection holds nothing any more."""
        self.account(connection, account, 0)

    def excess(self) -> Iterator[C]:
        """Connections that must give up what they hold, until it is no longer too much.

        The last one that made progress is not among them, or a single client could not store a
        value that takes more than half of the memory.
        """
        while self._store.overdrawn and len(self._connections) > 1:
            yield next(iter(self._connections))
