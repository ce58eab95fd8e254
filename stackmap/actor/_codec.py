"""What a stream asks of a codec: the shape of ``stackmap.codec.Codec``, and of h11.

It is a protocol in the sense of ``typing``, so that any class with these methods is one.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

Buffer = bytes | bytearray | memoryview

In_co = TypeVar("In_co", covariant=True)
Out_contra = TypeVar("Out_contra", contravariant=True)


class Codec(Protocol[In_co, Out_contra]):
    """One connection's end of a protocol, without I/O."""

    def receive(self, data: Buffer, /) -> None:
        """Take what the peer sent, and copy what is kept of it."""

    def receive_eof(self) -> None:
        """The peer will send nothing more."""

    def next_message(self) -> In_co | None:
        """The next message; None if that needs more input.

        Raises:
            ValueError: the peer does not keep to the protocol.  An attribute ``reply`` is a list of
                buffers to send before hanging up.
        """

    def send(self, message: Out_contra, /) -> list[Buffer]:
        """Encode a message as buffers, to be written in order."""
