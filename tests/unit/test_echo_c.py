"""The echo servers in C: every byte comes back, however slowly a client reads.

``tests/guest/test_echo_c.py`` runs the same on rings.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.receiving import receive_exactly
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Connect = Callable[[], socket.socket]

PATIENCE = 100.0
#: More than the buffers of both ends hold.
PATTERN = bytes(range(251)) * 80_000


def started(address: str, *options: str) -> tuple[subprocess.Popen[str], int]:
    """Start a server, or several in threads; returns their process and port."""
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "stackmap_testbed.cost.echo_c", address, str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "listening\n"
    return process, port


def stop(process: subprocess.Popen[str]) -> None:
    """End a server, which must not have ended by itself."""
    with process:  # closes its pipe
        assert process.poll() is None, "the server has ended"
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module", params=["1", "2"], ids=["one", "threads"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Connects to a server."""
    process, port = started("127.0.0.1", "--threads", request.param)
    yield lambda: socket.create_connection(("127.0.0.1", port), PATIENCE)
    stop(process)


@pytest.mark.parametrize("size", [1, 64, 512, 513, 4096, 65_537])
def test_it_sends_back_what_comes(connect: Connect, size: int) -> None:
    with connect() as peer:
        for _ in range(3):
            peer.sendall(PATTERN[:size])
            assert receive_exactly(peer, size) == PATTERN[:size]


def test_many_clients_at_once(connect: Connect) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(connect()) for _ in range(200)]
        for number, peer in enumerate(peers):
            peer.sendall(b"%04d" % number)
        for number, peer in enumerate(peers):
            assert receive_exactly(peer, 4) == b"%04d" % number


def flood(peer: socket.socket) -> int:
    """Send until nothing more is taken; returns how many bytes were."""
    peer.setblocking(False)
    sent = 0
    while sent < len(PATTERN):
        if not select.select([], [peer], [], 1.0)[1]:
            break
        sent += peer.send(PATTERN[sent : sent + 65_536])
    peer.settimeout(PATIENCE)
    return sent


def test_a_client_that_does_not_read_is_held_up_and_loses_nothing(connect: Connect) -> None:
    with connect() as peer, connect() as other:
        sent = flood(peer)
        assert sent < len(PATTERN), "the server queued all of it"
        other.sendall(b"others go on")
        assert receive_exactly(other, 12) == b"others go on"
        assert receive_exactly(peer, sent) == PATTERN[:sent]
        peer.sendall(b"more")
        assert receive_exactly(peer, 4) == b"more"


def test_a_half_closed_client_gets_the_rest(connect: Connect) -> None:
    with connect() as peer:
        sent = flood(peer)
        peer.shutdown(socket.SHUT_WR)
        assert receive_exactly(peer, sent) == PATTERN[:sent]
        assert peer.recv(1) == b""


def test_clients_that_reset_harm_nobody(connect: Connect) -> None:
    with connect() as other:
        for _ in range(20):
            peer = connect()
            peer.sendall(PATTERN[:100_000])
            reset_on_close(peer)
            peer.close()
        time.sleep(0.1)
        other.sendall(b"still here")
        assert receive_exactly(other, 10) == b"still here"
