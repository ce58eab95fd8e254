"""Account for bytes that wait in connections, and choose connections to drop if need be.

Half values, long lines, commands that wait for their turn, and replies that clients do not take
are memory just as items are, and clients decide how much of it there is.  So room is reserved for
it in the store: ``--memory`` bounds all of it together.  More than half of the memory is never
left to it: then the connections that have got on with nothing for the longest time give up theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap import Connection

    from .session import Session
    from .store import Store

#: What a connection may hold without account: an unfinished line, or a small reply.  It is no more
#: than the connection itself takes.
FREE = 2048


class Waiting:
    """The connections that hold memory, in the order in which they last got on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connections: OrderedDict[Connection, None] = OrderedDict()

    def account(self, connection: Connection, session: Session) -> None:
        """See how much a connection holds, which has just got on."""
        held = session.held + connection.pending
        if held <= FREE:
            held = 0
            self._connections.pop(connection, None)
        else:
            self._connections[connection] = None
            self._connections.move_to_end(connection)
        self._store.reserve(held - session.charged)
        session.charged = held

    def forget(self, connection: Connection, session: Session) -> None:
        """The connection holds nothing any more."""
        self._connections.pop(connection, None)
        self._store.reserve(-session.charged)
        session.charged = 0

    def excess(self) -> Iterator[Connection]:
        """Connections that must give up what they hold, until it is no longer too much.

        The last one that got on is not among them, or a single client could not store a value
        that takes more than half of the memory.
        """
        while self._store.overdrawn and len(self._connections) > 1:
            yield next(iter(self._connections))
