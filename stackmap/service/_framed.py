"""A protocol as a filter: bytes outside, messages inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from stackmap.codec import RemoteProtocolError

from ._errors import ServiceClosedError
from ._filter import Filter

if TYPE_CHECKING:
    from stackmap.codec import Buffer, Codec

    from ._service import Service

In = TypeVar("In")
Out = TypeVar("Out")


class Framed(Filter["Buffer", bytes, In, "Out | None"], Generic[In, Out]):
    r"""Parses what a client sends, asks the service behind, and encodes its replies.

    With it a whole server is a function from bytes to bytes, which a test calls without a
    connection: ``await Framed(Lines()).and_then(service)(b"one\ntwo\n")``.  Bytes may be cut
    anywhere; those of an incomplete message wait for the next call.  A server does not need it.

    Args:
        codec: this end of the one connection that the filter stands for.

    Raises (from a request):
        RemoteProtocolError: an earlier request was not of the protocol, so the connection would
            have been closed.
        ServiceClosedError: an earlier reply, or the client itself, has ended the connection.
    """

    def __init__(self, codec: Codec[In, Out]) -> None:
        self._codec = codec
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"Framed({type(self._codec).__name__})"

    async def __call__(self, req: Buffer, service: Service[In, Out | None], /) -> bytes:
        """Answer all messages that are complete with these bytes."""
        if self._error is not None:
            raise self._error
        codec = self._codec
        codec.receive(req)
        out: list[Buffer] = []
        try:
            while (message := codec.next_message()) is not None:
                reply = await service(message)
                if reply is not None:
                    out += codec.send(reply)
                if codec.must_close:
                    break
            else:
                out += codec.take_output()
        except RemoteProtocolError as error:
            self._error = error
            out += error.reply
        else:
            if codec.must_close:
                self._error = ServiceClosedError("an earlier reply has ended the connection")
        return b"".join(out)
