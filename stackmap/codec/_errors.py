"""Violations of a protocol, by the peer or by the program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._codec import Buffer


class ProtocolError(ValueError):
    """One end of a connection does not keep to its protocol."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow, or more than the codec's bound.

    The codec is of no use any more: it ignores input and raises this again.

    Attributes:
        reply: what to send to the peer before hanging up; empty if the protocol has no words for
            the error.
    """

    def __init__(self, message: str, reply: Sequence[Buffer] = ()) -> None:
        super().__init__(message)
        self.reply: list[Buffer] = list(reply)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), [bytes(part) for part in self.reply])


class LocalProtocolError(ProtocolError):
    """The program itself wants to send what the protocol does not allow.

    Nothing was encoded, and the codec is as before.
    """
