"""HTTP/1.1 three ways: any function from a request to its response."""

from __future__ import annotations

import functools
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Never

from stackmap.actor import ConnectionActor
from stackmap.codec import RemoteProtocolError
from stackmap.codec.http1 import Request, Response, ServerCodec
from stackmap.service import make_service

from .files import refusal
from .host import PortLoop, run_actors, run_service

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from stackmap import Connection, Port, Segment

    Answer = Callable[[Request], Response]

log = logging.getLogger(__name__)

#: Bytes that the body of a request may have; more is answered with 413.
MAX_BODY = 64 << 10
#: Makes the codec of a connection.
make_codec = functools.partial(ServerCodec, max_body=MAX_BODY)


class Client:
    """A client of the bare loop; ``app`` of its connection."""

    __slots__ = ("at_end", "codec", "finished")

    def __init__(self) -> None:
        self.codec = make_codec()
        self.at_end = False  # it sends nothing more
        self.finished = False  # it is sent nothing more


class HttpLoop(PortLoop):
    """The codec on a bare loop."""

    def __init__(self, port: Port, sock: socket.socket, answer: Answer) -> None:
        super().__init__(port, sock)
        self._respond = answer

    def received(self, segment: Segment) -> None:
        """Answer what is complete."""
        connection = segment.connection
        if connection.app is None:
            connection.app = Client()
        connection.app.codec.receive(segment.view)
        self._go_on(connection)

    def writable(self, connection: Connection) -> None:
        """The client has read its responses: answer what waited behind them."""
        self._go_on(connection)

    def ended(self, connection: Connection) -> None:
        """Close once everything is answered."""
        if connection.app is None or connection.app.finished:
            connection.close()
        else:
            connection.app.at_end = True
            connection.app.codec.receive_eof()
            self._go_on(connection)

    def finish(self, connection: Connection) -> None:
        """Answer the requests that wait behind unsent responses first."""
        if connection.app is None:
            super().finish(connection)
        else:
            self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        client: Client | None = connection.app
        if client is None or client.finished or connection.is_closing():
            return
        codec = client.codec
        try:
            while not connection.pending:
                request = codec.next_message()
                if request is None:
                    break
                connection.writelines(codec.send(self._respond(request)))
            else:
                connection.pause_reading()
                return
            connection.writelines(codec.take_output())
        except RemoteProtocolError as error:
            connection.writelines(error.reply)
            client.at_end = True
        if client.at_end or codec.must_close:
            connection.close()
        elif self._draining:
            client.finished = True
            super().finish(connection)
        else:
            connection.resume_reading()


class HttpActor(ConnectionActor[Never, Request, Response]):
    """Owns one connection."""

    def __init__(self, answer: Answer) -> None:
        self._respond = answer

    def connected(self) -> None:
        """Take everything; the stream holds back a client that does not read."""
        self.stream.active(True)

    def received(self, message: Request) -> None:
        """Answer a request."""
        self.send(self._respond(message))


def run_http(model: str, port: Port, sock: socket.socket, answer: Answer) -> int:
    """Serve until SIGINT or SIGTERM.

    Args:
        model: ``"loop"``, ``"service"`` or ``"actors"``.
        port: the data path.
        sock: a listening socket.
        answer: makes responses, without blocking.  What it raises is logged, and answered with 500.

    Returns:
        The exit code: 1 if clients were cut off that had not taken their replies in time.
    """
    answer = _rescued(answer)
    if model == "loop":
        return HttpLoop(port, sock, answer).run()
    if model == "service":
        return run_service(port, sock, make_service(answer), make_codec)
    return run_actors(port, sock, functools.partial(HttpActor, answer), make_codec)


def _rescued(answer: Answer) -> Answer:
    def answer_or_refuse(request: Request) -> Response:
        try:
            return answer(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.target)
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    return answer_or_refuse
