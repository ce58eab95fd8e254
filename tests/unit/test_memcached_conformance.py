"""Our server against Debian's memcached, on the loopback interface, over sockets."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.conformance import (
    Address,
    Conversation,
    first_difference,
    memccapable_outcomes,
    missing_programs,
    oracle,
    pymemcache_outcomes,
    until_hang_up,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
)


@pytest.fixture(scope="module")
def ours() -> Iterator[Address]:
    command = [sys.executable, "-m", "stackmap_cli.main", "serve", "memcached"]
    with subprocess.Popen(
        [*command, "--backend", "sockets", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[2].rstrip(",")
            host, port = address.rsplit(":", 1)
            yield host, int(port)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.stdout.readline().startswith("stopped after ")
        assert process.wait(10) == 0


@pytest.fixture(scope="module")
def theirs() -> Iterator[Address]:
    with oracle() as address:
        yield address


@pytest.mark.parametrize("seed", range(12))
def test_the_same_conversation(ours: Address, theirs: Address, seed: int) -> None:
    assert first_difference(ours, theirs, seed=seed, count=400) is None


def test_pymemcache(ours: Address, theirs: Address) -> None:
    expected = pymemcache_outcomes(theirs)
    assert sum(outcome == "passed" for outcome in expected.values()) >= 100
    assert pymemcache_outcomes(ours) == expected


def test_memccapable(ours: Address, theirs: Address) -> None:
    expected = memccapable_outcomes(theirs)
    assert list(expected.values()).count("pass") >= 27
    assert memccapable_outcomes(ours) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"foo HTTP/1.0\r\n",
        b"x" * 3000,
        b" " * 101 + b"get " + b"k " * 1500,
        b"quit\r\n",
        b"quit now\r\n",
    ],
)
def test_hanging_up(ours: Address, theirs: Address, data: bytes) -> None:
    assert until_hang_up(ours, data) == until_hang_up(theirs, data)


def test_the_binary_protocol_is_refused(ours: Address) -> None:
    assert until_hang_up(ours, b"\x80" + bytes(23)) == b""


def test_a_large_conversation_in_one_write(ours: Address, theirs: Address) -> None:
    """The client does not read before it has sent everything."""
    values = [bytes([65 + n]) * (n * 9973) for n in range(20)]
    stream = b"flush_all\r\n" + b"".join(
        b"set k%d 0 0 %d\r\n%b\r\n" % (n, len(value), value) for n, value in enumerate(values)
    )
    stream += b"".join(b"get k%d k%d\r\n" % (n, 19 - n) for n in range(20)) * 3
    replies = []
    for address in (ours, theirs):
        conversation = Conversation(address)
        replies.append(conversation.ask(stream))
        conversation.close()
    assert replies[0] == replies[1]


@pytest.mark.parametrize("report", [b"", b" ", b" settings", b" items", b" slabs", b" sizes"])
def test_reports_have_no_lines_that_memcached_has_not(
    ours: Address, theirs: Address, report: bytes
) -> None:
    lines = []
    for address in (ours, theirs):
        conversation = Conversation(address)
        conversation.ask(b"set k 0 0 1\r\nx\r\n")
        reply = conversation.ask(b"stats%b\r\n" % report)
        conversation.close()
        assert reply.endswith(b"END\r\n")
        lines.append({line.split()[1] for line in reply.splitlines() if b"STAT" in line})
    assert lines[0] <= lines[1]


def test_our_own_report(ours: Address) -> None:
    conversation = Conversation(ours)
    reply = conversation.ask(b"stats stackmap\r\n").decode()
    conversation.close()
    lines = dict(line.split()[1:3] for line in reply.splitlines()[:-1])
    assert lines["backend"] == "sockets"
    assert int(lines["stackmap_socket_bytes_rx"]) > 0
    assert lines["stackmap_ring_bytes_rx"] == "0"


def test_a_client_that_does_not_read(ours: Address) -> None:
    """Its replies are not piled up, and the others are served."""
    lazy = socket.create_connection(ours)
    busy = Conversation(ours)
    with lazy:
        busy.ask(b"set big 0 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\n")
        lazy.sendall(b"get big\r\n" * 300)
        for _ in range(100):
            assert busy.ask(b"get big\r\n").endswith(b"END\r\n")
        received = 0
        lazy.settimeout(20)
        lazy.shutdown(socket.SHUT_WR)
        while data := lazy.recv(1 << 20):
            received += len(data)
    assert received == 300 * len(b"VALUE big 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\nEND\r\n")
    busy.close()
