"""The server's end: requests in, responses out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stackmap.codec._errors import LocalProtocolError, RemoteProtocolError

from ._end import NO_BODY, End, as_bytes, decode_headers, encode_headers, local_error, phrase
from ._h11 import h11
from ._messages import Request, Response

if TYPE_CHECKING:
    from stackmap.codec._codec import Buffer


class ServerCodec(End[Request, Response]):
    """Receives requests, and sends one response to each, in the order of the requests.

    A request may arrive before the last one was answered.  A client that waits for leave to send a
    body (``Expect: 100-continue``) gets it from :meth:`take_output`, if the body is not too large.
    What the peer does wrong is answered with 400, 413 (the body is too large), 431 (the headers
    are) or 501, in the ``reply`` of the error; send it after the responses to earlier requests.
    """

    __slots__ = ("_close",)

    def __init__(self, *, max_body: int = 1 << 20, max_header: int = 16 << 10) -> None:
        super().__init__(max_body=max_body, max_header=max_header)
        self._connection = self._new_cycle(h11.SERVER)
        self._close = False

    @property
    def must_close(self) -> bool:
        """Whether the connection ends once everything that :meth:`send` returned was written."""
        return self._close

    def _cut(self) -> Request | None:
        connection = self._connection
        if connection is None or self._ended:
            # What follows the last request of a connection is ignored.
            self._data.clear()
            return None
        message = self._receive_message(connection)
        if message is None:
            return None
        head, body = message
        assert isinstance(head, h11.Request)
        self._cycles.append((connection, head.method == b"HEAD"))
        if connection.their_state is h11.MUST_CLOSE:
            self._ended = True
            self._connection = None
        else:
            self._connection = self._new_cycle(h11.SERVER)
            self._hand_on(connection, self._connection)
        return Request(
            head.method.decode("ascii"),
            head.target.decode("latin-1"),
            decode_headers(head),
            body,
            head.http_version.decode("ascii"),
        )

    def _error_of_peer(self, status: int, text: str) -> RemoteProtocolError:
        body = phrase(status) + b"\n"
        head = b"HTTP/1.1 %d %b\r\nConnection: close\r\n" % (status, phrase(status))
        fields = b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
        return RemoteProtocolError(text, [head + fields, body])

    def take_output(self) -> list[Buffer]:
        """``100 Continue``, if the client waits for it and every earlier request is answered."""
        connection = self._connection
        if connection is None or self._cycles or not connection.they_are_waiting_for_100_continue:
            return []
        go_on = h11.InformationalResponse(status_code=100, headers=[], reason=phrase(100))
        return list(connection.send_with_data_passthrough(go_on) or ())

    def send(self, message: Response) -> list[Buffer]:
        """Encode the response to the oldest request that has none.

        Raises:
            LocalProtocolError: there is no such request, the last response has ended the
                connection, or h11 refuses the message.
        """
        if self._close or not self._cycles:
            raise LocalProtocolError("there is no request that this could be the response to")
        connection, is_head = self._cycles[0]
        body: Buffer | None = as_bytes(message.body)
        if message.status in NO_BODY:
            if body:
                raise LocalProtocolError(f"a response {message.status} has no body")
            body = None
        try:
            head = h11.Response(
                status_code=message.status,
                headers=encode_headers(message.headers, body),
                reason=message.reason.encode("latin-1") or phrase(message.status),
            )
            buffers = self._send_message(connection, head, None if is_head else body)
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise local_error(error) from error
        self._cycles.popleft()
        if connection.our_state is not h11.DONE:
            self._close = True
        elif not self._cycles:
            buffers += self.take_output()
        return buffers
