"""The outcome of a write."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ._stream import Stream


class Ack:
    """Awaiting it waits until TCP, or the ring, has taken the whole write.

    Nobody has to await it: an error that nobody asks for is told by a signal.

    Attributes:
        end: the number of bytes that were written to the stream up to the end of this write.
        error: why it was refused; None if it was taken, or waits.
    """

    __slots__ = ("_stream", "end", "error")

    def __init__(self, stream: Stream[Any, Any], end: int, error: OSError | None = None) -> None:
        self._stream = stream
        self.end = end
        self.error = error

    def __repr__(self) -> str:
        state = "refused" if self.error else "accepted" if self.accepted else "waits"
        return f"<Ack of byte {self.end}, {state}>"

    @property
    def accepted(self) -> bool:
        """TCP has all of it.  As after ``send()``, the peer may not have it."""
        return self.error is None and self._stream.accepted >= self.end

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until TCP has all of it.

        Raises:
            WouldBlockError: it was refused, see :class:`WriteFailed`.
            BrokenError: the connection failed before.
            ClosedError: the actor itself had closed the connection.
        """
        return self._stream.wait_accepted(self).__await__()

    async def acknowledged(self) -> None:
        """Wait until the peer's TCP has acknowledged all of it, and all written before this call.

        Call it before anything else is awaited, so that an event can tell.  The peer's program may
        not have read the bytes.

        Raises:
            NotImplementedError: the transport cannot tell: it is no transport of ``stackmap.aio``,
                or TLS is between.
            OSError: as when the write itself is awaited, or the connection failed meanwhile.
        """
        await self._stream.wait_acknowledged(self)
