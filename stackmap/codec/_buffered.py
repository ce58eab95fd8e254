"""The common part of codecs that cut complete messages from a buffer."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from ._codec import Codec, In_co, Out_contra
from ._errors import RemoteProtocolError

if TYPE_CHECKING:
    from ._codec import Buffer


class Buffered(Codec[In_co, Out_contra]):
    """Keeps the stream in a ``bytearray``; a subclass cuts messages from its front.

    A subclass implements ``_cut()``, which takes the next message out of ``_data``, and
    :meth:`send`.

    Deleting from the front of a ``bytearray`` moves a pointer, so a segment of many messages is not
    copied once for each of them.
    """

    __slots__ = ("_data", "_eof", "_error")

    def __init__(self) -> None:
        self._data = bytearray()
        self._eof = False
        self._error: RemoteProtocolError | None = None

    @abc.abstractmethod
    def _cut(self) -> In_co | None:
        """Cut the next message from the front of ``_data``; None if it is not complete.

        Raises:
            RemoteProtocolError: it never will be.
        """

    @property
    def held(self) -> int:
        """How many bytes of the peer wait in the codec."""
        return len(self._data)

    def receive(self, data: Buffer) -> None:
        """Take what the peer sent."""
        if self._error is None:
            self._data += data

    def receive_eof(self) -> None:
        """The peer will send nothing more."""
        self._eof = True

    def next_message(self) -> In_co | None:
        """The next message of the peer; None if that needs more input."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        try:
            message = self._cut()
        except RemoteProtocolError as error:
            self._fail(error)
            raise
        if message is None and self._eof and self._unfinished():
            raise self._fail(RemoteProtocolError("the peer hung up within a message"))
        return message

    def _unfinished(self) -> bool:
        """Whether a message has begun."""
        return bool(self._data)

    def _fail(self, error: RemoteProtocolError) -> RemoteProtocolError:
        """Give up; every further call of next_message() raises this error."""
        self._error = error
        self._data = bytearray()
        return error
