"""The types of a stream: the methods of asyncio's streams that programs call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    Buffer = bytes | bytearray | memoryview


class ReaderLike(Protocol):
    """The half that reads, as :class:`asyncio.StreamReader` does."""

    async def read(self, n: int = -1, /) -> bytes:
        """Read up to ``n`` bytes as soon as there are any; if it is negative, all to the end."""
        ...

    async def readexactly(self, n: int, /) -> bytes:
        """Read ``n`` bytes.

        Raises:
            asyncio.IncompleteReadError: the stream ended before.
        """
        ...

    async def readuntil(self, separator: bytes = b"\n", /) -> bytes:
        """Read to the next separator, and the separator.

        Raises:
            asyncio.IncompleteReadError: the stream ended before.
            asyncio.LimitOverrunError: there are more bytes before it than the reader's limit.
        """
        ...

    async def readline(self) -> bytes:
        """Read a line with its end, or what is left at the end of the stream.

        Raises:
            ValueError: the line is longer than the reader's limit.
        """
        ...

    def at_eof(self) -> bool:
        """The stream has ended, and all of it was read."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over lines."""
        ...


class WriterLike(Protocol):
    """The half that writes, as :class:`asyncio.StreamWriter` does."""

    def write(self, data: Buffer, /) -> None:
        """Send ``data``, which is the caller's again at once."""

    def writelines(self, data: Iterable[Buffer], /) -> None:
        """Send several buffers, as one :meth:`write` would."""

    async def drain(self) -> None:
        """Wait until more should be written.

        Raises:
            ConnectionError: the connection was lost.
        """

    def can_write_eof(self) -> bool:
        """:meth:`write_eof` is supported."""
        ...

    def write_eof(self) -> None:
        """Close this direction after what was written.

        Raises:
            NotImplementedError: the other direction cannot go on alone, as with TLS.
        """

    def close(self) -> None:
        """Close the stream after what was written."""

    def is_closing(self) -> bool:
        """The stream is closed or closing."""
        ...

    async def wait_closed(self) -> None:
        """Wait until the stream is closed, and what was written was sent."""

    def get_extra_info(self, name: str, default: Any = None, /) -> Any:
        """Tell something about the connection, or ``default``."""
