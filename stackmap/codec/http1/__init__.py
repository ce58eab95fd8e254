"""HTTP/1.1 (RFC 9112) over h11: whole requests and responses, on either side.

A message has a complete and bounded body.  Framing is h11's: keep-alive, chunks, ``HEAD`` and
responses that have no body.  Each cycle of a request and its response has an h11 connection of its
own, so a client may send further requests before the first is answered.
"""

from ._client import ClientCodec
from ._messages import Headers, Request, Response
from ._server import ServerCodec

__all__ = ["ClientCodec", "Headers", "Request", "Response", "ServerCodec"]
