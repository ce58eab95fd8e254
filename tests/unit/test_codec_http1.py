"""HTTP/1.1 as messages, with the standard library at the other end of a pair of sockets."""

from __future__ import annotations

import http.client
import io
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackmap.codec import LocalProtocolError, RemoteProtocolError
from stackmap.codec.http1 import ClientCodec, Request, Response, ServerCodec
from tests.unit.codecs import cut, outcome, received, sent

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = ("Host", "example.org")
#: What h11 may have besides the largest head: what it gets at a time.
PIECE = 16 << 10

tokens = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
header_lists = st.lists(
    st.tuples(tokens.map("x-{}".format), st.text("ab c\xe9", max_size=9).map(str.strip)), max_size=3
)
bodies = st.binary(max_size=300) | st.just(bytes(70_000))
chunked = st.booleans().map(lambda yes: [("transfer-encoding", "chunked")] if yes else [])


def request_of(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Request:
    return Request(method, f"/{path}", (("host", "x"), *headers), body)


requests = st.one_of(
    st.builds(request_of, st.sampled_from(["GET", "HEAD"]), tokens, header_lists, st.just(b"")),
    st.builds(request_of, st.just("POST"), tokens, header_lists, bodies),
    st.builds(request_of, st.just("PUT"), tokens, chunked, bodies),
)
responses = st.one_of(
    st.builds(Response, st.sampled_from([200, 404, 599]), header_lists, bodies),
    st.builds(Response, st.just(200), chunked, bodies),
    st.builds(Response, st.sampled_from([204, 304]), header_lists),
)


def without_framing(message: Request | Response) -> list[tuple[str, str]]:
    return [pair for pair in message.headers if pair[0] != "content-length"]


@settings(max_examples=20)
@given(st.lists(st.tuples(requests, responses), max_size=5), st.randoms())
def test_pipelined_cycles_arrive_as_they_were(
    cycles: list[tuple[Request, Response]], generator: random.Random
) -> None:
    client, server = ClientCodec(), ServerCodec()
    stream = sent(client, [request for request, _ in cycles])
    found = list(received(server, cut(stream, generator)))
    assert len(found) == len(cycles)
    for request, (expected, _) in zip(found, cycles, strict=True):
        assert (request.method, request.target) == (expected.method, expected.target)
        assert without_framing(request) == list(expected.headers)
        assert request.body == expected.body
    stream = sent(server, [response for _, response in cycles])
    answers = list(received(client, cut(stream, generator)))
    assert len(answers) == len(cycles)
    for response, (request, wanted) in zip(answers, cycles, strict=True):
        assert response.status == wanted.status
        assert without_framing(response) == list(wanted.headers)
        assert response.body == (b"" if request.method == "HEAD" else wanted.body)
    assert (client.held, server.held) == (0, 0)
    assert (client.must_close, server.must_close) == (False, False)


pieces = st.lists(
    st.binary(max_size=40)
    | st.sampled_from(
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"1;ext=1\r\nx\r\n" * 400,
            b"GET / HTTP/1.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 204 OK\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n",
            b"x: y\r\n",
            b"a: " + b"b" * 900,
        ]
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=30)
@given(pieces, st.randoms())
def test_any_bytes_have_one_outcome_at_a_server(stream: bytes, generator: random.Random) -> None:
    def new() -> ServerCodec:
        return ServerCodec(max_body=300, max_header=PIECE)

    whole = outcome(new(), [stream], 2 * PIECE, words=False)
    assert outcome(new(), cut(stream, generator), 2 * PIECE, words=False) == whole


@settings(max_examples=30)
@given(pieces, st.randoms(), st.sampled_from(["GET", "HEAD"]))
def test_any_bytes_have_one_outcome_at_a_client(
    stream: bytes, generator: random.Random, method: str
) -> None:
    def new() -> ClientCodec:
        client = ClientCodec(max_body=300, max_header=PIECE)
        sent(client, [Request(method, "/", [HOST])] * 3)
        return client

    whole = outcome(new(), [stream], 2 * PIECE, words=False)
    assert outcome(new(), cut(stream, generator), 2 * PIECE, words=False) == whole


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"b" * 40_000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\nExpect: 100-continue\r\n\r\n",
            413,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"40\r\n" + bytes(64) + b"\r\n40\r\n" + bytes(64) + b"\r\n",
            413,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)  # fmt: skip
def test_what_a_server_refuses(stream: bytes, status: int) -> None:
    server = ServerCodec(max_body=100)
    good = b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n"
    server.receive(good + stream)
    assert server.next_message() is not None
    with pytest.raises(RemoteProtocolError) as caught:
        server.next_message()
    assert server.take_output() == []
    # The request before is still answered, and then comes the reply.
    answers = sent(server, [Response(200)]) + b"".join(map(bytes, caught.value.reply))
    client = ClientCodec()
    sent(client, [Request("GET", "/", [HOST])] * 2)
    first, second = received(client, [answers])
    assert (first.status, second.status) == (200, status)
    assert second.header("Connection") == "close"
    assert client.must_close


def test_a_client_that_waits_for_leave_gets_it_in_its_turn() -> None:
    server = ServerCodec()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    server.receive(head)
    assert server.next_message() is None
    assert b"".join(map(bytes, server.take_output())) == go_on
    assert server.take_output() == []
    server.receive(b"ab" + head)
    first = server.next_message()
    assert first is not None
    assert first.body == b"ab"
    assert server.next_message() is None
    # The response to the first request comes before.
    assert server.take_output() == []
    assert sent(server, [Response(204)]) == b"HTTP/1.1 204 No Content\r\n\r\n" + go_on
    server.receive(b"cd")
    second = server.next_message()
    assert second is not None
    assert second.body == b"cd"
    # A client that sends the body at once does not need 100 Continue.
    server.receive(head + b"ef")
    assert server.next_message() is not None
    assert server.take_output() == []


def test_a_body_is_not_copied() -> None:
    body = memoryview(bytearray(1000))
    client, server = ClientCodec(), ServerCodec()
    for headers in ([HOST], [HOST, ("Transfer-Encoding", "chunked")]):
        buffers = client.send(Request("POST", "/", headers, body))
        assert any(buffer is body for buffer in buffers)
        assert len(list(received(server, map(bytes, buffers)))) == 1
        assert any(buffer is body for buffer in server.send(Response(200, headers, body)))
    numbers = memoryview(bytes(400)).cast("i")
    (request,) = received(ServerCodec(), [sent(client, [Request("PUT", "/", [HOST], numbers)])])
    assert (request.header("content-length"), request.body) == ("400", bytes(400))


@pytest.mark.parametrize(
    "response",
    [
        Response(100),
        Response(204, body=b"x"),
        Response(200, [("Content-Length", "5")], b"four"),
        Response(200, [("a b", "c")]),
        Response(200, [("a", "b\r\nc: d")]),
        Response(200, [("a", "\u20ac")]),
        Response(200, [("Transfer-Encoding", "gzip")]),
    ],
)
def test_what_a_server_does_not_send(response: Response) -> None:
    server = ServerCodec()
    with pytest.raises(LocalProtocolError, match="no request"):
        server.send(Response(200))
    server.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert server.next_message() is not None
    with pytest.raises(LocalProtocolError):
        server.send(response)
    # It is as before.
    assert sent(server, [Response(200)]).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET", "/"),
        Request("GET", "/a b", [HOST]),
        Request("G T", "/", [HOST]),
        Request("GET", "/", [HOST, ("a", "b\nc")]),
        Request("PUT", "/", [HOST, ("Content-Length", "5")], b"four"),
    ],
)
def test_what_a_client_does_not_send(request_: Request) -> None:
    client = ClientCodec()
    with pytest.raises(LocalProtocolError):
        client.send(request_)
    assert client.next_message() is None


def test_a_response_that_nobody_asked_for() -> None:
    client = ClientCodec()
    client.receive(b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(RemoteProtocolError, match="no request waits"):
        client.next_message()


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
)
def test_the_last_request_of_a_connection(head: bytes) -> None:
    server = ServerCodec()
    assert len(list(received(server, [head + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]))) == 1
    assert not server.must_close
    assert b"Connection: close" in sent(server, [Response(200)])
    assert server.must_close
    server.receive(b"more")
    assert (server.next_message(), server.held) == (None, 0)


def test_a_response_that_ends_the_connection() -> None:
    server, client = ServerCodec(), ClientCodec()
    requests = sent(client, [Request("GET", "/", [HOST])] * 2)
    assert len(list(received(server, [requests]))) == 2
    answer = sent(server, [Response(200, [("Connection", "close")], b"bye")])
    assert server.must_close
    with pytest.raises(LocalProtocolError):
        server.send(Response(200))
    client.receive(answer)
    last = client.next_message()
    assert last is not None
    assert last.body == b"bye"
    with pytest.raises(LocalProtocolError, match="ended"):
        client.send(Request("GET", "/", [HOST]))
    # The second request gets no response.
    with pytest.raises(RemoteProtocolError):
        client.next_message()


def test_a_body_until_the_end_of_the_stream() -> None:
    client = ClientCodec()
    client.send(Request("GET", "/", [HOST]))
    client.receive(b"HTTP/1.1 200 OK\r\n\r\nsome")
    client.receive(b"thing")
    assert client.next_message() is None
    client.receive_eof()
    response = client.next_message()
    assert response is not None
    assert response.body == b"something"
    assert client.must_close


# -- the standard library at the other end --


def echo(request: Request) -> Response:
    """Everything that is asked, in a response."""
    text = f"{request.method} {request.target} {request.header('x-test')}\n".encode()
    headers = [("x-method", request.method), ("content-type", "text/plain")]
    if request.target == "/chunked":
        headers.append(("transfer-encoding", "chunked"))
    if request.target == "/empty":
        return Response(204, headers)
    return Response(200, headers, text + bytes(request.body))


def serve(sock: socket.socket) -> None:
    codec = ServerCodec()
    with sock:
        while not codec.must_close and (data := sock.recv(1000)):
            for request in received(codec, [data]):
                sock.sendall(b"".join(map(bytes, codec.send(echo(request)))))
            if output := codec.take_output():
                sock.sendall(b"".join(map(bytes, output)))


@pytest.fixture
def connection() -> Iterator[http.client.HTTPConnection]:
    """A client of the standard library, with our codec as its server."""
    ours, theirs = socket.socketpair()
    server = threading.Thread(target=serve, args=(ours,))
    server.start()
    connection = http.client.HTTPConnection("example.org")
    connection.sock = theirs
    connection.auto_open = 0
    theirs.settimeout(30)
    yield connection
    connection.close()
    server.join()


def test_the_client_of_the_standard_library(connection: http.client.HTTPConnection) -> None:
    big = bytes(range(256)) * 2000
    for method, target, body, encode_chunked in (
        ("GET", "/a", None, False),
        ("POST", "/b", big, False),
        ("POST", "/chunked", big, False),
        ("HEAD", "/c", None, False),
        ("GET", "/empty", None, False),
        ("PUT", "/d", io.BytesIO(big), True),
        ("GET", "/last", None, False),
    ):
        headers = {"X-Test": "caf\xe9"}
        if target == "/last":
            headers["Connection"] = "close"
        if encode_chunked:
            headers["Transfer-Encoding"] = "chunked"
        connection.request(method, target, body, headers, encode_chunked=encode_chunked)
        response = connection.getresponse()
        answer = response.read()
        text = f"{method} {target} caf\xe9\n".encode()
        expected = b"" if method == "HEAD" or target == "/empty" else text + (big if body else b"")
        assert answer == expected
        assert response.status == (204 if target == "/empty" else 200)
        assert response.getheader("x-method") == method
        if method == "HEAD":
            assert response.getheader("content-length") == str(len(text))
        assert response.will_close == (target == "/last")


class Handler(BaseHTTPRequestHandler):
    """A server of the standard library that says what it was asked."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        text = f"{self.command} {self.path} {self.headers.get('x-test')}\n".encode("latin-1") + body
        if self.path == "/empty":
            self.send_response(304)
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(text), 1000):
                piece = text[start : start + 1000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/until-the-end":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 (http.server's names)

    def log_message(self, *args: object) -> None:
        pass


def handle(sock: socket.socket) -> None:
    with sock:
        Handler(sock, ("peer", 0), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("last", ["/closing", "/until-the-end"])
def test_the_server_of_the_standard_library(last: str) -> None:
    ours, theirs = socket.socketpair()
    server = threading.Thread(target=handle, args=(theirs,))
    server.start()
    big = bytes(range(256)) * 500
    headers = [HOST, ("X-Test", "caf\xe9")]
    messages = [
        Request("GET", "/a", headers),
        Request("POST", "/b", [*headers, ("Expect", "100-continue")], big),
        Request("POST", "/chunked", headers, big),
        Request("HEAD", "/c", headers),
        Request("GET", "/empty", headers),
        Request("PUT", "/d", headers, big),
        Request("GET", last, headers + [("Connection", "close")] * (last == "/closing")),
    ]
    codec = ClientCodec()
    found: list[Response] = []
    with ours:
        ours.settimeout(30)
        # All at once: the server reads one after the other.
        writer = threading.Thread(target=ours.sendall, args=(sent(codec, messages),))
        writer.start()
        while data := ours.recv(700):
            found += received(codec, [data])
        codec.receive_eof()
        if (message := codec.next_message()) is not None:
            found.append(message)
        writer.join()
    server.join()
    assert codec.must_close
    assert len(found) == len(messages)
    for request, response in zip(messages, found, strict=True):
        text = f"{request.method} {request.target} caf\xe9\n".encode("latin-1")
        without = request.method == "HEAD" or request.target == "/empty"
        assert response.body == (b"" if without else text + bytes(request.body))
        assert response.status == (304 if request.target == "/empty" else 200)
        if request.method == "HEAD":
            assert response.header("Content-Length") == str(len(text))
