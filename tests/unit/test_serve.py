"""``stackmap serve memcached``: what it says, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from click.testing import CliRunner

from stackmap import DEVICE, BackendUnavailableError, open_port
from stackmap_cli.main import main
from stackmap_testbed.memcached.conformance import wait_for_listener

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, "-m", "stackmap_cli.main", "serve", "memcached"]
each_model = pytest.mark.parametrize("model", ["loop", "service", "actors"])
without_module = pytest.mark.skipif(os.path.exists(DEVICE), reason="the kernel module is loaded")  # noqa: PTH110


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], IO[str], list[str]]]:
    """A running server, its output, and the lines it printed until it was ready."""
    with subprocess.Popen(
        [*COMMAND, "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
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


@pytest.mark.parametrize(
    ("number", "model"),
    [
        (signal.SIGTERM, "loop"),
        (signal.SIGINT, "loop"),
        (signal.SIGUSR1, "loop"),
        (signal.SIGUSR1, "service"),
        (signal.SIGINT, "actors"),
    ],
)
def test_a_signal_ends_it_after_the_last_reply(number: int, model: str) -> None:
    with (
        serving("--backend", "sockets", "--model", model) as (process, output, lines),
        connect(lines) as client,
    ):
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


@each_model
def test_queued_replies_are_delivered_before_it_ends(model: str) -> None:
    with (
        serving("--backend", "sockets", "--model", model) as (process, _output, lines),
        connect(lines) as client,
    ):
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


@pytest.mark.parametrize("model", ["service", "actors"])
def test_one_client_too_many_waits(model: str) -> None:
    options = ("--backend", "sockets", "--model", model, "--max-connections", "1")
    with serving(*options) as (_process, _output, lines), connect(lines) as first:
        assert ask(first, b"version\r\n").startswith(b"VERSION ")
        with connect(lines) as second:
            second.sendall(b"version\r\n")
            for _ in range(20):
                assert ask(first, b"mn\r\n") == b"MN\r\n"
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.recv(1)
            first.close()
            second.settimeout(10)
            assert second.recv(100).startswith(b"VERSION ")


def receive_until_end(client: socket.socket) -> None:
    while client.recv(1 << 20):
        pass


def ask(client: socket.socket, command: bytes, expected: int = 100) -> bytes:
    client.sendall(command)
    return client.recv(expected)


def test_it_waits_at_the_limit_of_descriptors() -> None:
    with (
        serving("--backend", "sockets") as (process, _output, lines),
        contextlib.ExitStack() as stack,
    ):
        first = stack.enter_context(connect(lines))
        assert ask(first, b"version\r\n").startswith(b"VERSION ")
        used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
        others = [stack.enter_context(connect(lines)) for _ in range(20)]
        report = b""
        while b"STAT listen_disabled_num 0" in (report := ask(first, b"stats\r\n", 10_000)):
            pass
        assert b"STAT accepting_conns 0\r\n" in report
        for client in others[:15]:
            client.close()
        assert ask(others[-1], b"version\r\n").startswith(b"VERSION ")
        while b"STAT accepting_conns 0\r\n" in (report := ask(first, b"stats\r\n", 10_000)):
            pass
        assert b"STAT time_in_listen_disabled_us 0\r\n" not in report


def limited(limit: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The server's output and status after the shell command ``limit``."""
    command = shlex.join([*COMMAND, "--backend", "sockets", "--listen", "127.0.0.1:0", *options])
    return subprocess.run(
        ["/bin/sh", "-c", f"{limit}; exec {command}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("option", [[], ["--max-connections", "300"]])
def test_more_connections_than_descriptors_are_refused(option: list[str]) -> None:
    run = limited("ulimit -n 200", *option)
    assert run.returncode == 1
    assert re.fullmatch(
        r"Error: \d+ connections need \d+ file descriptors, and this process may have 200: "
        r"use --max-connections 168, or raise the limit \(ulimit -Hn\)\n",
        run.stderr,
    )
    assert run.stdout == ""


def test_the_soft_limit_of_descriptors_is_raised() -> None:
    command = shlex.join([*COMMAND, "--backend", "sockets", "--listen", "127.0.0.1:0"])
    with (
        subprocess.Popen(
            ["/bin/sh", "-c", f"ulimit -Sn 64; exec {command}"], stdout=subprocess.PIPE, text=True
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline()]
            clients = [stack.enter_context(connect(lines)) for _ in range(150)]
            for client in clients:
                assert ask(client, b"version\r\n").startswith(b"VERSION ")
        finally:
            process.terminate()


def test_a_hangup_does_not_end_it() -> None:
    with serving("--backend", "sockets") as (process, _output, lines), connect(lines) as client:
        assert ask(client, b"version\r\n").startswith(b"VERSION ")
        process.send_signal(signal.SIGHUP)
        assert ask(client, b"version\r\n").startswith(b"VERSION ")
        process.terminate()
        assert process.wait(10) == 0


@each_model
def test_the_second_signal_does_not_wait_for_clients(model: str) -> None:
    with (
        serving("--backend", "sockets", "--model", model) as (process, _output, lines),
        connect(lines) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert ask(client, b"set k 0 0 1000000\r\n" + bytes(1_000_000) + b"\r\n") == b"STORED\r\n"
        client.sendall(b"get k\r\n" * 50)
        with connect(lines) as other:
            assert ask(other, b"version\r\n").startswith(b"VERSION ")
            process.send_signal(signal.SIGINT)
            # It stops listening, and then waits for the client that does not read.
            assert other.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(lines)
        process.send_signal(signal.SIGINT)
        with pytest.raises(ConnectionResetError):
            receive_until_end(client)
        assert process.wait(60) == 1


@pytest.mark.parametrize("closed", ["reader", "descriptor"])
def test_it_does_not_need_anybody_to_read_what_it_prints(closed: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    listen = f"{address[0]}:{address[1]}"
    command = shlex.join([*COMMAND, "--backend", "sockets", "--listen", listen])
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}" + (" >&-" if closed == "descriptor" else "")],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    with process:
        wait_for_listener(address)
        with socket.create_connection(address) as client:
            assert ask(client, b"version\r\n").startswith(b"VERSION ")
            process.terminate()
        _out, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, "")


@each_model
def test_idle_clients_are_disconnected(model: str) -> None:
    options = ("--backend", "sockets", "--model", model, "--idle-timeout", "2")
    with (
        serving(*options) as (_process, _output, lines),
        connect(lines) as idle,
        connect(lines) as half,
        connect(lines) as busy,
    ):
        idle.settimeout(0.2)
        half.sendall(b"set k 0 0 100\r\nx")
        ended = b"not yet"
        while ended:
            assert ask(busy, b"version\r\n").startswith(b"VERSION ")
            try:
                ended = idle.recv(1)
            except TimeoutError:
                continue
            except ConnectionResetError:
                ended = b""
        with pytest.raises(ConnectionResetError):
            half.recv(1)
        assert b"STAT idle_kicks 2\r\n" in ask(busy, b"stats\r\n", 10_000)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--nic", "eth9"], "--nic names a NIC for rings"),
        (["--nic", ""], "Invalid value for '--nic': a NIC has a name"),
        (["--memory", "99999999999999999999"], "is more than this machine has"),
        (["--memory", "0"], "Invalid value for '--memory'"),
        (["--memory", "-5"], "Invalid value for '--memory'"),
        (["--memory", "1.5"], "Invalid value for '--memory'"),
        (["--max-connections", "0"], "Invalid value for '--max-connections'"),
        (["--idle-timeout", "-1"], "Invalid value for '--idle-timeout'"),
        (["--idle-timeout", "99999999"], "Invalid value for '--idle-timeout'"),
        (["--backend", "ring"], "Invalid value for '--backend'"),
        (["--listen", ":::1"], "write an IPv6 address in brackets"),
        (["--listen", "::1:11211"], "write an IPv6 address in brackets"),
        (["--listen", "[::1:11211"], "write an IPv6 address in brackets"),
        (["--listen", "[127.0.0.1]:1"], "'127.0.0.1' is no IPv6 address"),
        (["--listen", "[]:1"], "'' is no IPv6 address"),
        (["--listen", "127.0.0.1:\u0663"], "is not HOST:PORT"),
        (["--listen", "127.0.0.1:-1"], "is not HOST:PORT"),
    ],
)
def test_a_bad_option_is_a_usage_error(options: list[str], complaint: str) -> None:
    arguments = ["serve", "memcached", "--backend", "sockets", *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


def test_more_connections_than_any_limit_are_refused() -> None:
    result = CliRunner().invoke(main, ["serve", "memcached", "--max-connections", str(10**19)])
    assert result.exit_code == 1
    assert "file descriptors" in result.output


def test_the_help_names_refused_protocols() -> None:
    result = CliRunner().invoke(main, ["serve", "memcached", "--help"])
    text = " ".join(result.output.split())
    assert "The binary protocol is refused" in text


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(main, ["serve", "memcached", "--listen", address])
    assert result.exit_code == 1
    assert result.output == f"Error: cannot listen on {address}: Address already in use\n"


def test_a_port_of_root_s_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_sock: socket.socket, _address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", bind)  # the tests may run as root
    result = CliRunner().invoke(main, ["serve", "echo", "--listen", "127.0.0.1:80"])
    assert result.exit_code == 1
    assert "Permission denied (ports below 1024 are root's)" in result.output
    result = CliRunner().invoke(main, ["serve", "echo", "--listen", "127.0.0.1:8080"])
    assert result.output.endswith("Permission denied\n")


def test_an_invalid_host_name_is_one_sentence() -> None:
    result = CliRunner().invoke(main, ["serve", "memcached", "--listen", "a..b:1"])
    assert result.exit_code == 1
    assert result.output == "Error: cannot listen on a..b:1: that is no host name\n"


@pytest.mark.parametrize("address", ["80", "host:", "host:x", "host:99999"])
def test_a_bad_address_is_a_usage_error(address: str) -> None:
    result = CliRunner().invoke(main, ["serve", "memcached", "--listen", address])
    assert result.exit_code == 2


@without_module
@pytest.mark.parametrize("command", ["memcached", "echo", "http"])
def test_rings_that_cannot_be_had_are_one_sentence(command: str) -> None:
    options = ["serve", command, "--backend", "stackmap", "--listen", "127.0.0.1:0"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: [^\n]+\n", result.output)
    with pytest.raises(BackendUnavailableError):
        open_port("stackmap")


def test_open_port_falls_back() -> None:
    with open_port("sockets") as port:
        assert port.backend == "sockets"
