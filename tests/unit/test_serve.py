"""``stackmap serve memcached``: what it says, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest
from click.testing import CliRunner

from stackmap import BackendUnavailableError, open_port
from stackmap._refusal import DEVICE
from stackmap_cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

without_module = pytest.mark.skipif(os.path.exists(DEVICE), reason="the kernel module is loaded")  # noqa: PTH110


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], IO[str], list[str]]]:
    """A running server, its output, and the lines it printed until it was ready."""
    command = [sys.executable, "-m", "stackmap_cli.main", "serve", "memcached"]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "listening on" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1]
        try:
            yield process, process.stdout, lines
        finally:
            if process.poll() is None:
                process.kill()


def connect(lines: list[str]) -> socket.socket:
    found = re.search(r"listening on ([\d.]+):(\d+), backend sockets, pid \d+\n", lines[-1])
    assert found
    return socket.create_connection((found[1], int(found[2])), 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_last_reply(number: int) -> None:
    with serving("--backend", "sockets") as (process, output, lines), connect(lines) as client:
        assert len(lines) == 1
        client.sendall(b"set k 0 0 1\r\nx\r\nget k\r\n")
        expected = b"STORED\r\nVALUE k 0 1\r\nx\r\nEND\r\n"
        reply = bytearray()
        while len(reply) < len(expected):
            reply += client.recv(100)
        assert reply == expected
        process.send_signal(number)
        assert client.recv(1) == b""
        assert process.wait(10) == 0
        assert re.fullmatch(
            r"stopped after 1 connections, 1 hits, 0 misses, 1 stores, 0 evictions; "
            r"received 0 bytes in rings and 23 by sockets, sent 0 and 29\n",
            output.read(),
        )


def test_queued_replies_are_delivered_before_it_ends() -> None:
    with serving("--backend", "sockets") as (process, _output, lines), connect(lines) as client:
        client.sendall(b"set k 0 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\n")
        assert client.recv(8) == b"STORED\r\n"
        client.sendall(b"get k\r\n" * 50)
        reply = bytearray(client.recv(10))
        process.send_signal(signal.SIGTERM)
        while data := client.recv(1 << 20):
            reply += data
        assert reply == (b"VALUE k 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\nEND\r\n") * 50
        assert process.wait(10) == 0


@without_module
def test_auto_says_which_backend_and_why() -> None:
    with serving() as (_process, _output, lines):
        assert re.fullmatch(r"using sockets because .+\n", lines[0])


def test_one_client_too_many() -> None:
    with (
        serving("--backend", "sockets", "--max-connections", "2") as (_process, _output, lines),
        connect(lines) as first,
        connect(lines) as second,
    ):
        for client in (first, second):
            client.sendall(b"version\r\n")
            assert client.recv(100).startswith(b"VERSION ")
        with connect(lines) as third:
            assert third.recv(100) == b"ERROR Too many open connections\r\n"
            assert third.recv(100) == b""
        second.close()
        reply = b"ERROR"
        while reply.startswith(b"ERROR"):
            with connect(lines) as third:
                third.sendall(b"version\r\n")
                reply = third.recv(100)
        assert reply.startswith(b"VERSION ")


def test_it_waits_at_the_limit_of_descriptors() -> None:
    command = "ulimit -n 24; exec " + sys.executable + " -m stackmap_cli.main serve memcached "
    with subprocess.Popen(
        ["/bin/sh", "-c", command + "--backend sockets --listen 127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        try:
            clients = [connect(lines) for _ in range(30)]
            clients[0].sendall(b"version\r\n")
            assert clients[0].recv(100).startswith(b"VERSION ")
            for client in clients[:20]:
                client.close()
            clients[-1].sendall(b"version\r\n")
            assert clients[-1].recv(100).startswith(b"VERSION ")
            for client in clients[20:]:
                client.close()
        finally:
            process.terminate()
            process.communicate()


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(main, ["serve", "memcached", "--listen", address])
    assert result.exit_code == 1
    assert result.output == f"Error: cannot listen on {address}: Address already in use\n"


def test_what_is_no_host_name_is_one_sentence() -> None:
    result = CliRunner().invoke(main, ["serve", "memcached", "--listen", "a..b:1"])
    assert result.exit_code == 1
    assert result.output == "Error: cannot listen on a..b:1: that is no host name\n"


@pytest.mark.parametrize("address", ["80", "host:", "host:x", "host:99999"])
def test_a_bad_address_is_a_usage_error(address: str) -> None:
    result = CliRunner().invoke(main, ["serve", "memcached", "--listen", address])
    assert result.exit_code == 2


@without_module
def test_rings_that_cannot_be_had_are_one_sentence() -> None:
    options = ["serve", "memcached", "--backend", "stackmap", "--listen", "127.0.0.1:0"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: [^\n]+\n", result.output)
    with pytest.raises(BackendUnavailableError):
        open_port("stackmap")


def test_open_port_falls_back() -> None:
    with open_port("sockets") as port:
        assert port.backend == "sockets"
