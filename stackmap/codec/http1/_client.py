"""The client's end: requests out, responses in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stackmap.codec._errors import LocalProtocolError, RemoteProtocolError

from ._end import End, as_bytes, decode_headers, encode_headers, local_error
from ._h11 import h11
from ._messages import Request, Response

if TYPE_CHECKING:
    from stackmap.codec._codec import Buffer

#: Methods whose requests say that their body is empty (RFC 9110, section 8.6).
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


class ClientCodec(End[Response, Request]):
    """Sends requests, and receives their responses, in the order of the requests.

    Further requests may be sent before the first is answered.  Responses before the final one are
    taken and not reported.  A body goes out with its request: it never waits for ``100 Continue``.
    """

    __slots__ = ()

    @property
    def must_close(self) -> bool:
        """Whether the server ends the connection: it takes no further request."""
        return self._ended

    def _cut(self) -> Response | None:
        connection = self._connection
        if connection is None:
            if self._data and not self._ended:
                raise RemoteProtocolError("the peer sends a response, and no request waits for one")
            self._data.clear()
            self._ended |= self._eof
            return None
        message = self._receive_message(connection)
        if message is None:
            return None
        head, body = message
        assert isinstance(head, h11.Response)
        self._cycles.popleft()
        self._next_cycle(connection)
        return Response(
            head.status_code,
            decode_headers(head),
            body,
            head.reason.decode("latin-1"),
            head.http_version.decode("ascii"),
        )

    def _next_cycle(self, old: h11.Connection) -> None:
        """Go on to the next request that waits for its response."""
        rest, closed = old.trailing_data
        self._ended = closed or old.their_state is not h11.DONE
        if not self._cycles:
            self._connection = None
            self._data[:0] = rest
            return
        self._connection = new = self._cycles[0][0]
        if self._ended:
            # The other requests will have no response.
            self._data.clear()
            self._eof = True
        else:
            self._hand_on(old, new)

    def send(self, message: Request) -> list[Buffer]:
        """Encode a request.

        Raises:
            LocalProtocolError: the connection has ended, or h11 refuses the message; each request
                needs a header ``Host``.
        """
        if self._ended or self._eof or self._error is not None:
            raise LocalProtocolError("the connection has ended, so the request cannot be sent")
        body: Buffer | None = as_bytes(message.body)
        framed = body or message.method in _WITH_BODY
        try:
            head = h11.Request(
                method=message.method.encode("ascii"),
                target=message.target.encode("latin-1"),
                headers=encode_headers(message.headers, body if framed else None),
            )
            connection = self._new_cycle(h11.CLIENT)
            buffers = self._send_message(connection, head, body)
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise local_error(error) from error
        self._cycles.append((connection, message.method == "HEAD"))
        if self._connection is None:
            self._connection = connection
        return buffers
