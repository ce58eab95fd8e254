"""What a codec is to this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from stackmap.codec import Buffer

In_co = TypeVar("In_co", covariant=True)
Out_contra = TypeVar("Out_contra", contravariant=True)


class Codec(Protocol[In_co, Out_contra]):
    """The shape of :class:`stackmap.codec.Codec`.

    It is a protocol for its variance: a codec that encodes any buffer encodes ``bytes``, and so
    serves a service whose replies are ``bytes``.
    """

    def receive(self, data: Buffer, /) -> None: ...
    def receive_eof(self) -> None: ...
    def next_message(self) -> In_co | None: ...
    def send(self, message: Out_contra, /) -> list[Buffer]: ...
    @property
    def held(self) -> int: ...
