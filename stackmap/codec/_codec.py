"""The interface of codecs: one connection's end of a protocol, without I/O.

The shape is h11's: bytes in, messages out, and the other way round; the owner of the connection
moves the bytes.  So the same codec serves a ring, a socket, an asyncio transport and a test.
"""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

Buffer = bytes | bytearray | memoryview
#: The messages that the peer sends, and those that this end sends.  A codec that encodes any buffer
#: is also one that encodes ``bytes``, hence the variance.
In_co = TypeVar("In_co", covariant=True)
Out_contra = TypeVar("Out_contra", contravariant=True)


class Codec(abc.ABC, Generic[In_co, Out_contra]):
    """One connection's end of a protocol; ``Callable[[], Codec[In, Out]]`` is a codec factory.

    Pass what arrives to :meth:`receive`, then call :meth:`next_message` until it returns None::

        codec.receive(data)
        while (message := codec.next_message()) is not None:
            connection.writelines(codec.send(answer(message)))
        connection.writelines(codec.take_output())
        if codec.must_close:
            connection.close()

    Memory is bounded if it is used so: once :meth:`next_message` has returned None, :attr:`held` is
    at most the bound that the codec was made with.  Time is linear in the input, however it is cut.

    Raises:
        ValueError: an argument is out of its range.
    """

    __slots__ = ("__weakref__",)

    @abc.abstractmethod
    def receive(self, data: Buffer) -> None:
        """Take what the peer sent.

        ``data`` is copied as far as it is kept: it may be released or changed afterwards.  It
        raises nothing: errors of the peer come from :meth:`next_message`, after the messages that
        came before them.
        """

    @abc.abstractmethod
    def receive_eof(self) -> None:
        """The peer will send nothing more."""

    @abc.abstractmethod
    def next_message(self) -> In_co | None:
        """The next message of the peer; None if that needs more input.

        Raises:
            RemoteProtocolError: the peer does not keep to the protocol, has sent more than the
                bound allows, or has ended its side within a message.  Send the error's ``reply``
                and hang up.
        """

    @abc.abstractmethod
    def send(self, message: Out_contra) -> list[Buffer]:
        """Encode a message.

        Returns:
            Buffers to be written in this order.  Payload that the message has as a buffer is among
            them as it is, uncopied: it must not be changed until it was written.

        Raises:
            LocalProtocolError: the protocol does not allow this message, or not now.
        """

    def take_output(self) -> list[Buffer]:
        """What the protocol itself has to say now, as ``100 Continue`` in HTTP; most have nothing.

        Call it when :meth:`next_message` has returned None, and write what it returns.
        """
        return []

    @property
    def must_close(self) -> bool:
        """Whether the connection ends once everything that :meth:`send` returned was written."""
        return False

    @property
    @abc.abstractmethod
    def held(self) -> int:
        """How many bytes of the peer wait in the codec."""


def size_of(buffer: Buffer) -> int:
    """How many bytes it has; ``len()`` of a view counts its elements."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
