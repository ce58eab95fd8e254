"""``stackmap serve echo`` and ``serve http`` on rings, each model."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from stackmap.codec.http1 import ClientCodec, Request
from tests.guest.test_examples import OnRings
from tests.receiving import receive_exactly
from tests.unit.test_examples import PATTERN, receive_all, running

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "from stackmap_cli.main import main; main()"


@pytest.fixture(scope="module")
def place() -> OnRings:
    return OnRings()


@pytest.mark.parametrize("model", ["loop", "service", "actors"])
def test_echo(place: OnRings, model: str) -> None:
    options = ["--backend", "stackmap", "--model", model, "--listen", f"{place.address}:0"]
    with (
        running(place, "-c", PROGRAM, "serve", "echo", *options) as server,
        server.connect() as client,
    ):
        client.sendall(PATTERN[:10_000])
        assert receive_exactly(client, 10_000) == PATTERN[:10_000]
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


@pytest.mark.parametrize("model", ["loop", "service", "actors"])
def test_http(place: OnRings, model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(PATTERN)
    options = ["--backend", "stackmap", "--model", model, "--listen", f"{place.address}:0"]
    options += ["--root", str(tmp_path)]
    codec = ClientCodec(max_body=len(PATTERN))
    host = [("Host", "x")]
    with (
        running(place, "-c", PROGRAM, "serve", "http", *options) as server,
        server.connect() as client,
    ):
        for target, status in (("/file", 200), ("/none", 404), ("/file", 200)):
            client.sendall(b"".join(codec.send(Request("GET", target, host))))
            while (response := codec.next_message()) is None:
                data = client.recv(1 << 16)
                assert data
                codec.receive(data)
            assert response.status == status
            assert status == 404 or response.body == PATTERN
        client.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        assert receive_all(client).endswith(b"\r\n\r\n" + PATTERN)
