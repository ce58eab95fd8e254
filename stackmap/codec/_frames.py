"""Frames: a header with the number of bytes that follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ._buffered import Buffered
from ._codec import In_co, Out_contra, size_of
from ._errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from ._codec import Buffer


class Frames(Buffered[In_co, Out_contra]):
    """The common part of codecs that put each message into a frame.

    Args:
        header_size: how many bytes the number has: 1, 2, 4 or 8.
        byteorder: of the number; ``"big"`` is the network's.
        max_size: how many bytes a payload may have.  A header that announces more is an error at
            once, so nobody sends for nothing.

    Raises:
        ValueError: there are no such headers, or the header cannot say ``max_size``.
    """

    __slots__ = ("_byteorder", "_header_size", "_max_size")

    def __init__(
        self,
        *,
        header_size: Literal[1, 2, 4, 8] = 4,
        byteorder: Literal["big", "little"] = "big",
        max_size: int | None = None,
    ) -> None:
        if header_size not in {1, 2, 4, 8}:
            raise ValueError(f"header_size is 1, 2, 4 or 8, not {header_size}")
        if byteorder not in {"big", "little"}:
            raise ValueError(f"byteorder is 'big' or 'little', not {byteorder!r}")
        most = (1 << 8 * header_size) - 1
        if max_size is None:
            max_size = min(most, 1 << 20)
        if not 0 <= max_size <= most:
            raise ValueError(f"a header of {header_size} bytes says 0 to {most}, not {max_size}")
        super().__init__()
        self._header_size = header_size
        self._byteorder: Literal["big", "little"] = byteorder
        self._max_size = max_size

    def _cut_frame(self) -> bytes | None:
        """The payload of the next frame, if it is complete."""
        data = self._data
        start = self._header_size
        if len(data) < start:
            return None
        size = int.from_bytes(data[:start], self._byteorder)
        if size > self._max_size:
            raise RemoteProtocolError(
                f"the peer's frame has {size} bytes, and {self._max_size} are allowed"
            )
        end = start + size
        if len(data) < end:
            return None
        with memoryview(data) as view:
            payload = bytes(view[start:end])
        del data[:end]
        return payload

    def _frame(self, payload: Buffer) -> list[Buffer]:
        """The frame with this payload."""
        size = size_of(payload)
        if size > self._max_size:
            raise LocalProtocolError(
                f"a message of {size} bytes is larger than the {self._max_size} of a frame"
            )
        return [size.to_bytes(self._header_size, self._byteorder), payload]


class LengthPrefixed(Frames[bytes, "Buffer"]):
    """Messages of bytes, each in a frame."""

    __slots__ = ()

    def _cut(self) -> bytes | None:
        return self._cut_frame()

    def send(self, message: Buffer) -> list[Buffer]:
        """Put the message into a frame.

        Raises:
            LocalProtocolError: it is larger than ``max_size``.
        """
        return self._frame(message)
