"""``stackmap serve echo`` and ``serve http``: each model on real sockets, as a program."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from stackmap.codec.http1 import ClientCodec, Request, Response
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATTERN = bytes(range(251)) * 4096
MODELS = ("loop", "service", "actors")
Address = tuple[str, int]


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    command = [sys.executable, "-m", "stackmap_cli.main", "serve", *arguments]
    command += ["--backend", "sockets", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            found = re.match(
                r"listening on ([\d.]+):(\d+), backend sock", process.stdout.readline()
            )
            assert found
            yield process, (found[1], int(found[2]))
        finally:
            process.kill()


@pytest.fixture(scope="module", params=MODELS)
def echo(request: pytest.FixtureRequest) -> Iterator[Address]:
    with serving("echo", "--model", request.param) as (_process, address):
        yield address


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("above")
    (above / "secret").write_text("secret")
    root = above / "root"
    (root / "sub folder").mkdir(parents=True)
    (root / "index.html").write_text("<p>all")
    (root / "sub folder" / "index.html").write_text("<p>sub")
    (root / "large").write_bytes(PATTERN)
    (root / "a.tar.gz").write_bytes(b"gz")
    (root / "too large").touch()
    os.truncate(root / "too large", 17 << 20)
    (root / "out").symlink_to(above / "secret")
    (root / "within").symlink_to(root / "large")
    (root / "empty").mkdir()
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture(scope="module", params=MODELS)
def http(request: pytest.FixtureRequest, root: Path) -> Iterator[Address]:
    with serving("http", "--model", request.param, "--root", str(root)) as (_process, address):
        yield address


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


def ask(address: Address, *requests: Request) -> list[Response]:
    """Send requests together on one connection."""
    codec = ClientCodec(max_body=1 << 25)
    found: list[Response] = []
    with socket.create_connection(address, 60) as client:
        for request in requests:
            headers = [*request.headers, ("Host", "x")]
            parts = codec.send(Request(request.method, request.target, headers, request.body))
            client.sendall(b"".join(parts))
        while len(found) < len(requests):
            data = client.recv(1 << 16)
            codec.receive(data) if data else codec.receive_eof()
            while (response := codec.next_message()) is not None:
                found.append(response)
    return found


def get(address: Address, target: str, *headers: tuple[str, str]) -> Response:
    return ask(address, Request("GET", target, headers))[0]


def test_echo_sends_back_everything_and_then_its_end(echo: Address) -> None:
    with socket.create_connection(echo, 60) as client:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
        client.sendall(PATTERN[:100_000])
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == PATTERN[:100_000]


def test_echo_holds_up_a_client_that_does_not_read(echo: Address) -> None:
    with socket.create_connection(echo, 60) as greedy, socket.create_connection(echo, 60) as other:
        greedy.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 100 << 20:
                sent += greedy.send(memoryview(PATTERN)[sent % len(PATTERN) :])
        assert sent < 100 << 20
        other.sendall(b"meanwhile")
        assert receive_exactly(other, 9) == b"meanwhile"
        greedy.settimeout(60)
        expected = PATTERN * (sent // len(PATTERN)) + PATTERN[: sent % len(PATTERN)]
        assert receive_exactly(greedy, sent) == expected


def test_http_serves_files(http: Address) -> None:
    for target, kind, body in (
        ("/", "text/html; charset=utf-8", b"<p>all"),
        ("/index.html?query", "text/html; charset=utf-8", b"<p>all"),
        ("http://x/sub%20folder/", "text/html; charset=utf-8", b"<p>sub"),
        ("/large", "application/octet-stream", PATTERN),
        ("/within", "application/octet-stream", PATTERN),
        ("/sub%20folder/../a.tar.gz", "application/gzip", b"gz"),
    ):
        response = get(http, target)
        assert (response.status, response.header("content-type")) == (200, kind), target
        assert response.body == body
        assert response.header("date")


def test_http_serves_nothing_else(http: Address) -> None:
    for target, status in (
        ("/nothing", 404),
        ("/index.html/", 404),
        ("/empty/", 404),
        ("/fifo", 404),
        ("/../secret", 404),
        ("/%2e%2e/secret", 404),
        ("//../secret", 404),
        ("/sub%20folder/..%2f../secret", 404),
        ("/out", 404),
        ("/%00", 404),
        ("/%ff", 404),
        ("/" + "x" * 5000, 404),
        ("/too%20large", 403),
        ("large", 400),
    ):
        assert get(http, target).status == status, target
    moved = get(http, "//sub%20folder")
    assert (moved.status, moved.header("location")) == (400, None)  # that was a host's name
    moved = get(http, "/sub%20folder")
    assert (moved.status, moved.header("location")) == (301, "/sub%20folder/")


def test_http_knows_methods_and_bounds_bodies(http: Address) -> None:
    (refused,) = ask(http, Request("POST", "/", (), b"x" * 60_000))
    assert (refused.status, refused.header("allow")) == (405, "GET, HEAD")
    assert ask(http, Request("PUT", "/", (), b"x" * 70_000))[0].status == 413


def test_http_keeps_a_connection_for_pipelined_requests(http: Address) -> None:
    requests = [Request("HEAD", "/large"), Request("GET", "/nothing")]
    requests += [Request("GET", "/large")] * 20 + [Request("GET", "/")]
    head, missing, *whole, last = ask(http, *requests)
    assert (head.status, head.header("content-length")) == (200, str(len(PATTERN)))
    assert (missing.status, last.body) == (404, b"<p>all")
    assert [response.body for response in whole] == [PATTERN] * 20


def test_http_takes_the_load_that_its_cost_is_counted_with(http: Address, root: Path) -> None:
    (root / "64").write_bytes(bytes(64))
    host, port = http
    command = [sys.executable, "-m", "stackmap_testbed.cost.echo_load", host, str(port)]
    command += ["50", "1", "4", "--http", "--bytes", "64"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for connections, line in zip((1, 4), ended.stdout.splitlines(), strict=True):
        found = json.loads(line)
        assert (found["connections"], found["requests"], found["errors"]) == (connections, 50, 0)


def test_http_says_what_has_not_changed(http: Address) -> None:
    since = get(http, "/").header("last-modified")
    assert since
    unchanged = get(http, "/", ("If-Modified-Since", since))
    assert (unchanged.status, unchanged.body) == (304, b"")
    for old in ("Sun, 06 Nov 1994 08:49:37 GMT", "yesterday"):
        assert get(http, "/", ("If-Modified-Since", old)).status == 200


def test_http_closes_behind_the_last_response(http: Address) -> None:
    with socket.create_connection(http, 60) as client:
        client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        assert receive_all(client).endswith(b"\r\n\r\n" + PATTERN)
    with socket.create_connection(http, 60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrubbish\r\n\r\n")
        reply = receive_all(client)
        assert re.findall(rb"HTTP/1.1 (\d+)", reply) == [b"200", b"400"]
    with socket.create_connection(http, 60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client).endswith(b"<p>all")


@pytest.mark.parametrize("model", MODELS)
def test_a_signal_ends_it_with_clients_connected(model: str, root: Path) -> None:
    with (
        serving("http", "--model", model, "--root", str(root)) as (process, address),
        socket.create_connection(address, 60) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        process.send_signal(signal.SIGTERM)
        assert receive_all(client).endswith(b"<p>all")
        assert process.stdout
        assert process.stdout.read() == "stopped\n"
        assert process.wait(60) == 0
