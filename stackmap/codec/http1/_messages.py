"""Requests and responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackmap.codec import Buffer

#: Names and values, in the order of the message.
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request with its whole body.

    Attributes:
        method: as in the request line; the case matters.
        target: what follows the method, usually path and query.
        headers: names of received ones are in lower case; text is Latin-1, as HTTP has it.
        body: without its framing.  Content-Length is added to what is sent, unless the headers say
            ``Transfer-Encoding: chunked``.
        http_version: the peer's; what is sent is always 1.1.
    """

    method: str
    target: str
    headers: Headers = ()
    body: Buffer = b""
    http_version: str = "1.1"

    def header(self, name: str) -> str | None:
        """The first value of this header, whatever the case of its name; None if there is none."""
        return _first(self.headers, name)


@dataclass(frozen=True, slots=True)
class Response:
    """A response with its whole body.

    Attributes:
        status: 200 to 599; responses before the final one (1xx) are the codec's own.
        headers: as in a :class:`Request`.
        body: as in a :class:`Request`.  That of a response to HEAD is not sent, only its length.
        reason: the words behind the status; empty for the usual ones.
        http_version: the peer's; what is sent is always 1.1.
    """

    status: int
    headers: Headers = ()
    body: Buffer = b""
    reason: str = ""
    http_version: str = "1.1"

    def header(self, name: str) -> str | None:
        """The first value of this header, whatever the case of its name; None if there is none."""
        return _first(self.headers, name)


def _first(headers: Headers, name: str) -> str | None:
    wanted = name.lower()
    return next((value for name, value in headers if name.lower() == wanted), None)
