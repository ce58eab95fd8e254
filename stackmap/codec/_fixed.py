"""Records that all have the same size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._buffered import Buffered
from ._codec import size_of
from ._errors import LocalProtocolError

if TYPE_CHECKING:
    from ._codec import Buffer


class Fixed(Buffered[bytes, "Buffer"]):
    """Messages of ``size`` bytes, with nothing between them.

    Raises:
        ValueError: ``size`` is not positive.
    """

    __slots__ = ("_size",)

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"a record has at least one byte, not {size}")
        super().__init__()
        self._size = size

    def _cut(self) -> bytes | None:
        data = self._data
        size = self._size
        if len(data) < size:
            return None
        record = bytes(data[:size])
        del data[:size]
        return record

    def send(self, message: Buffer) -> list[Buffer]:
        """Encode a record, which is what it is.

        Raises:
            LocalProtocolError: it has another size.
        """
        if size_of(message) != self._size:
            raise LocalProtocolError(
                f"a record has {self._size} bytes, and this one {size_of(message)}"
            )
        return [message]
