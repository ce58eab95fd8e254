"""Lines of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._buffered import Buffered
from ._codec import size_of
from ._errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from ._codec import Buffer


class Lines(Buffered[bytes, "Buffer"]):
    r"""Messages that end with a delimiter, which is cut off, and put behind what is sent.

    A line that the peer's end of stream cuts off is an error, not a line.

    Args:
        delimiter: what ends a line.
        max_length: how many bytes a line may have, without its delimiter.
        strip_cr: cut off one ``b"\r"`` before the delimiter as well, as protocols do that accept
            both line ends.  What is sent ends with the delimiter alone.

    Raises:
        ValueError: the delimiter is empty, or ``max_length`` is negative.
    """

    __slots__ = ("_delimiter", "_max_length", "_searched", "_strip_cr")

    def __init__(
        self, delimiter: bytes = b"\n", *, max_length: int = 64 << 10, strip_cr: bool = False
    ) -> None:
        if not delimiter:
            raise ValueError("a delimiter has at least one byte")
        if max_length < 0:
            raise ValueError(f"max_length is a number of bytes, not {max_length}")
        super().__init__()
        self._delimiter = delimiter
        self._max_length = max_length
        self._strip_cr = strip_cr
        #: Where the search for the delimiter goes on.
        self._searched = 0

    def _cut(self) -> bytes | None:
        data = self._data
        size = len(self._delimiter)
        end = data.find(self._delimiter, self._searched)
        if end < 0:
            # The end of the data may be the beginning of a delimiter, or the byte that is stripped.
            self._searched = max(len(data) - size + 1, 0)
            if self._searched > self._max_length + self._strip_cr:
                raise self._too_long()
            return None
        stop = end
        if self._strip_cr and data.endswith(b"\r", 0, end):
            stop -= 1
        if stop > self._max_length:
            raise self._too_long()
        line = bytes(data[:stop])
        del data[: end + size]
        self._searched = 0
        return line

    def _too_long(self) -> RemoteProtocolError:
        return RemoteProtocolError(f"the peer's line has more than {self._max_length} bytes")

    def send(self, message: Buffer) -> list[Buffer]:
        """Encode a line, given without its delimiter.

        Raises:
            LocalProtocolError: it contains the delimiter, or is too long.
            TypeError: it is not bytes.
        """
        try:
            found = self._delimiter in (
                bytes(message) if isinstance(message, memoryview) else message
            )
        except TypeError:
            raise TypeError(f"a line is bytes, not a {type(message).__name__}") from None
        if found:
            raise LocalProtocolError(f"a line may not contain its delimiter {self._delimiter!r}")
        size = size_of(message)
        if size > self._max_length:
            raise LocalProtocolError(f"a line of {size} bytes is longer than {self._max_length}")
        return [message, self._delimiter]
