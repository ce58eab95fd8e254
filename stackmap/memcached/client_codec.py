"""The codec of a server's connection, which accounts for what waits there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stackmap.codec import RemoteProtocolError
from stackmap.codec.memcached import Error, Invalid, MetaSet, NoReply, ServerCodec, Store

from .store import NO_MEMORY
from .waiting import FREE, NO_ROOM_FOR_LINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stackmap.codec import Buffer
    from stackmap.codec.memcached import Reply, Request

#: Bytes that a line may have.
MAX_LINE = 1 << 20


class ClientCodec(ServerCodec):
    """A codec that says when much begins to wait in its connection, and can give that up.

    It knows the flags that memcached 1.6.18 knows.

    Attributes:
        account: called when what waits has changed, with the size of a reply that is to be written
            next; None until the connection has an owner.
        charged: bytes for which room is reserved in the store.
    """

    __slots__ = ("_next", "account", "charged")

    def __init__(self) -> None:
        super().__init__(max_line=MAX_LINE, later=False)
        self.account: Callable[[int], None] | None = None
        self.charged = 0
        #: The answer to a command that was given up.
        self._next: Invalid | None = None

    def receive(self, data: Buffer) -> None:
        """Take what the client sent."""
        super().receive(data)
        if len(self._data) > FREE and self.account is not None:
            self.account(0)

    def next_message(self) -> Request | Invalid | None:
        """The next command; None if that needs more input."""
        message = self._next
        if message is not None:
            self._next = None
            return message
        command = super().next_message()
        if self.charged and self.account is not None:
            # A complete value is the store's from here on.
            self.account(0)
        return command

    def send(self, message: Reply) -> list[Buffer]:
        """Encode a reply."""
        parts = super().send(message)
        size = sum(map(len, parts))
        if size > FREE and self.account is not None:
            self.account(size)
        return parts

    def drop_value(self) -> Store | MetaSet | None:
        """Give up a value that is being received, and skip the rest of it.

        The next message is the answer.

        Returns:
            The command; None if no value is being received.
        """
        if self._header is None:
            return None
        command, length = self._header
        self._header = None
        kept = self._data[length + 2 :]
        self._skip = max(length + 2 - len(self._data), 0)
        self._data = kept
        noreply = isinstance(command, Store) and command.noreply
        self._next = Invalid(NoReply() if noreply else Error.parse(NO_MEMORY))
        return command

    def close(self) -> None:
        """Free what was received.  The owner is not told of anything any more."""
        self.account = None
        self._data = bytearray()

    def drop_line(self) -> bool:
        """Give up a line that has no end yet; the next message is an error, which ends it all.

        Returns:
            Whether there was one.
        """
        if b"\n" in self._data or not self._data:
            return False
        self._fail(RemoteProtocolError("no memory for the client's line", [NO_ROOM_FOR_LINE]))
        return True
