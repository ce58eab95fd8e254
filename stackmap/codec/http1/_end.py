"""The common part of both ends of HTTP/1.1: receive a message, and encode one.

Strategy: an h11 connection sees one request and its response, and no more.  What it has received
beyond that is handed on to the next one.  h11 itself would hold back the next request until the
response was sent; this way it is there at once, and h11 still checks each cycle.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from stackmap.codec._buffered import Buffered
from stackmap.codec._codec import In_co, Out_contra, size_of
from stackmap.codec._errors import LocalProtocolError, RemoteProtocolError

from ._h11 import h11

if TYPE_CHECKING:
    from stackmap.codec._codec import Buffer

    from ._messages import Headers

#: How much h11 gets at a time, and so how much is copied at most from one cycle to the next.
_PIECE = 16 << 10
#: Responses that have no body, whatever their headers say (RFC 9110, section 6.4.1).
NO_BODY = frozenset((204, 304))
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class End(Buffered[In_co, Out_contra]):
    """One end of HTTP/1.1.

    Args:
        max_body: how many bytes the body of a peer's message may have.
        max_header: how many bytes its first line and headers may have.  It is looked at after each
            piece of 16 KiB, so a message that comes at once may have so much more.

    Raises:
        ValueError: a bound is not positive.
    """

    __slots__ = ("_body", "_connection", "_cycles", "_ended", "_head", "_max_body",
                 "_max_header")  # fmt: skip

    def __init__(self, *, max_body: int = 1 << 20, max_header: int = 16 << 10) -> None:
        if max_body <= 0 or max_header <= 0:
            raise ValueError("max_body and max_header are numbers of bytes above 0")
        super().__init__()
        self._max_body = max_body
        self._max_header = max_header
        #: The cycle whose message is being received, and those with a request but no response yet,
        #: oldest first, each with whether that request is a HEAD.
        self._connection: h11.Connection | None = None
        self._cycles: deque[tuple[h11.Connection, bool]] = deque()
        #: The message being received.
        self._head: h11.Request | h11.Response | None = None
        self._body = bytearray()
        #: No further cycle will follow on this connection.
        self._ended = False

    @property
    def held(self) -> int:
        """How many bytes of the peer wait in the codec."""
        in_h11 = self._connection.trailing_data[0] if self._connection is not None else b""
        return len(self._data) + len(in_h11) + len(self._body)

    def _fail(self, error: RemoteProtocolError) -> RemoteProtocolError:
        self._connection = None
        self._body = bytearray()
        return super()._fail(error)

    # -- receiving --

    def _receive_message(
        self, connection: h11.Connection
    ) -> tuple[h11.Request | h11.Response, bytes] | None:
        """The head and the body of this cycle's message, if it is complete."""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                raise self._error_of_peer(error.error_status_hint, str(error)) from error
            if isinstance(event, h11.Data):
                self._body += event.data
                self._check_body(len(self._body))
            elif isinstance(event, h11.Request | h11.Response):
                self._head = event
                for name, value in event.headers:
                    if name == b"content-length" and self._has_body(event):
                        self._check_body(int(value))
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                message = self._head, bytes(self._body)
                self._head = None
                self._body = bytearray()
                return message
            elif event is h11.PAUSED:
                raise self._error_of_peer(501, "the peer changes to another protocol")
            elif isinstance(event, h11.ConnectionClosed):
                self._ended = True
                return None
            elif event is h11.NEED_DATA and not self._feed(connection):
                return None

    def _has_body(self, head: h11.Request | h11.Response) -> bool:
        """Whether the content-length is that of a body which follows (RFC 9110, section 8.6)."""
        return isinstance(head, h11.Request) or not (
            head.status_code in NO_BODY or self._cycles[0][1]
        )

    def _check_body(self, size: int) -> None:
        if size > self._max_body:
            raise self._error_of_peer(
                413, f"the body of the peer's message has more than {self._max_body} bytes"
            )

    def _feed(self, connection: h11.Connection) -> bool:
        """Give h11 the next piece; False if there is none."""
        data = self._data
        if data:
            connection.receive_data(bytes(data[:_PIECE]))
            del data[:_PIECE]
            return True
        if self._eof and not connection.trailing_data[1]:
            connection.receive_data(b"")
            return True
        return False

    def _error_of_peer(self, status: int, text: str) -> RemoteProtocolError:  # noqa: ARG002
        return RemoteProtocolError(text)

    def _new_cycle(self, role: type[h11.SERVER | h11.CLIENT]) -> h11.Connection:
        return h11.Connection(role, max_incomplete_event_size=self._max_header)

    @staticmethod
    def _hand_on(old: h11.Connection, new: h11.Connection) -> None:
        """Give a cycle what the one before has received beyond its end."""
        rest, closed = old.trailing_data
        if rest:
            new.receive_data(rest)
        if closed:
            new.receive_data(b"")

    # -- sending --

    @staticmethod
    def _send_message(
        connection: h11.Connection, head: h11.Request | h11.Response, body: Buffer | None
    ) -> list[Buffer]:
        """Encode a message; ``body`` is None if it may have none."""
        buffers: list[Buffer] = []
        for event in (
            head,
            h11.Data(data=cast("bytes", body)) if body else None,
            h11.EndOfMessage(),
        ):
            if event is not None:
                buffers += connection.send_with_data_passthrough(event) or ()
        return [buffer for buffer in buffers if buffer]


def encode_headers(headers: Headers, body: Buffer | None) -> list[tuple[bytes, bytes]]:
    """The headers as bytes, with a content-length if ``body`` is not None and has no framing.

    Raises:
        LocalProtocolError: there is a content-length, and it is not that of the body.
    """
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    if body is not None:
        framing = {name.lower(): value for name, value in encoded}
        length = framing.get(b"content-length")
        if length is None and b"transfer-encoding" not in framing:
            encoded.append((b"Content-Length", b"%d" % size_of(body)))
        elif length is not None and length != b"%d" % size_of(body):
            raise LocalProtocolError(
                f"content-length is {length.decode('latin-1')}, and the body has {size_of(body)}"
            )
    return encoded


def decode_headers(head: h11.Request | h11.Response) -> Headers:
    """The headers as text, names in lower case."""
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)


def as_bytes(body: Buffer) -> Buffer:
    """The body in a form whose ``len()`` is its size."""
    return body.cast("B") if isinstance(body, memoryview) and body.itemsize != 1 else body


def local_error(error: Exception) -> LocalProtocolError:
    """Translate h11's refusal to send a message."""
    return LocalProtocolError(f"the message cannot be sent: {error}")


def phrase(status: int) -> bytes:
    """The usual words behind a status."""
    return _PHRASES.get(status, "").encode("ascii")
