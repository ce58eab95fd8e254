"""Typed messages in frames, encoded by msgspec."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from ._codec import In_co, Out_contra
from ._errors import LocalProtocolError, RemoteProtocolError
from ._frames import Frames

if TYPE_CHECKING:
    from types import ModuleType, UnionType

    from ._codec import Buffer


class MsgspecFrames(Frames[In_co, Out_contra]):
    """Messages of any type that msgspec knows, as JSON or MessagePack, each in a frame.

    ``MsgspecFrames[Request, Response](Request)`` receives requests and sends responses.  What
    arrives is checked against the type while it is decoded; what is sent is not, but for the type
    checker.

    Args:
        incoming: the type of the peer's messages, for instance a ``msgspec.Struct`` or a union of
            tagged ones.  None must not be among its values: it would be taken for no message.
        format: ``"json"``, which people can read, or ``"msgpack"``, which is smaller.
        header_size: as in :class:`LengthPrefixed`, as are ``byteorder`` and ``max_size``.

    Raises:
        ImportError: msgspec is not installed.
        TypeError: msgspec does not know the type.
        ValueError: the type admits None, or an argument is out of its range.
    """

    __slots__ = ("_decode", "_encode")

    def __init__(
        self,
        incoming: type[In_co] | UnionType,
        *,
        format: Literal["json", "msgpack"] = "json",
        header_size: Literal[1, 2, 4, 8] = 4,
        byteorder: Literal["big", "little"] = "big",
        max_size: int | None = None,
    ) -> None:
        super().__init__(header_size=header_size, byteorder=byteorder, max_size=max_size)
        if format not in {"json", "msgpack"}:
            raise ValueError(f"format is 'json' or 'msgpack', not {format!r}")
        msgspec = _import_msgspec(format)
        self._decode = msgspec.Decoder(incoming).decode
        self._encode = msgspec.Encoder().encode
        if self._admits_none():
            raise ValueError(f"{incoming} admits None, which stands for no message; wrap it")

    def _admits_none(self) -> bool:
        try:
            self._decode(self._encode(None))
        except ValueError:
            return False
        return True

    def _cut(self) -> In_co | None:
        payload = self._cut_frame()
        if payload is None:
            return None
        try:
            message: In_co = self._decode(payload)
        except (ValueError, RecursionError) as error:
            # msgspec's own errors are ValueErrors, as are those of text that is not UTF-8.
            raise RemoteProtocolError(f"the peer's message is not valid: {error}") from error
        return message

    def send(self, message: Out_contra) -> list[Buffer]:
        """Encode the message, and put it into a frame.

        Raises:
            LocalProtocolError: msgspec cannot encode it, or it is larger than ``max_size``.
        """
        try:
            payload: bytes = self._encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise LocalProtocolError(f"the message cannot be encoded: {error}") from error
        return self._frame(payload)


def _import_msgspec(format: str) -> ModuleType:
    try:
        return importlib.import_module(f"msgspec.{format}")
    except ImportError as error:
        raise ImportError(
            "MsgspecFrames needs msgspec; install stackmap[codecs], or msgspec itself"
        ) from error
