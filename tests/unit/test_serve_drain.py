"""``stackmap serve`` under load: a signal ends it, and nothing that was answered is lost."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = ("loop", "service", "actors")
PATIENCE = 60
CLIENTS = 8
#: Requests that a client sends ahead of their replies.
AHEAD = 20
#: Replies that a client must have before the signal comes.
BEFORE = 50

BODY = bytes(range(251)) * 20


class Echo:
    """Requests of an echo server."""

    command = ("echo",)
    request = reply = greedy = BODY


class Http:
    """Requests of a file."""

    command = ("http", "--root", str(Path(__file__).parents[1] / "typing"))
    request = greedy = b"GET /service_right.py HTTP/1.1\r\nHost: x\r\n\r\n"
    reply = b""  # the first one shows


class Memcached:
    """Requests of an item that nobody has stored, whose replies are as long as requests."""

    command = ("memcached",)
    request = b"mg " + b"k" * 200 + b" v\r\nmn\r\n"
    reply = b"EN\r\nMN\r\n"
    greedy = b"stats\r\n"  # whose reply is far longer


class Load(threading.Thread):
    """A client that sends requests, a few ahead, until its connection ends."""

    def __init__(self, address: tuple[str, int], kind: type[Echo | Http | Memcached]) -> None:
        super().__init__(daemon=True)
        self.sock = socket.create_connection(address, PATIENCE)
        self.kind = kind
        self.received = bytearray()
        self.reply = kind.reply
        self.busy = threading.Event()
        self.failure: OSError | None = None

    def run(self) -> None:
        with self.sock as sock:
            try:
                if not self.reply:
                    self.reply = self._first_reply()
                sock.sendall(self.kind.request * AHEAD)
                answered = 0
                while data := sock.recv(1 << 16):
                    self.received += data
                    now = len(self.received) // len(self.reply)
                    if now >= BEFORE:
                        self.busy.set()
                    # It stops to send only when the connection ends.
                    with contextlib.suppress(BrokenPipeError):
                        sock.sendall(self.kind.request * (now - answered))
                    answered = now
            except OSError as failure:
                self.failure = failure

    def _first_reply(self) -> bytes:
        self.sock.sendall(self.kind.request)
        reply = b""
        while not (head := re.search(rb"(?i)content-length: (\d+)[^\0]*?\r\n\r\n", reply)) or len(
            reply
        ) < head.end() + int(head[1]):
            reply += self.sock.recv(1 << 16)
        return reply


def undated(replies: bytes | bytearray) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", replies, flags=re.IGNORECASE)


PROGRAM = "from stackmap_cli.main import main; main()"
#: Gives clients so many seconds to take their last replies.
GRACE = "import stackmap.servers.drain; stackmap.servers.drain.GRACE = {}; "
#: It drains longer than any test waits.
PATIENT = GRACE.format(3600.0) + PROGRAM
HASTY = GRACE.format(0.1) + PROGRAM


@contextmanager
def serving(
    *arguments: str, program: str = PROGRAM
) -> Iterator[tuple[subprocess.Popen[str], IO[str], tuple[str, int]]]:
    command = [sys.executable, "-c", program, "serve", *arguments]
    command += ["--backend", "sockets", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            found = re.match(r"listening on ([\d.]+):(\d+)", process.stdout.readline())
            assert found
            yield process, process.stdout, (found[1], int(found[2]))
        finally:
            process.kill()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [Echo, Http, Memcached])
def test_stopping_under_load_loses_no_reply(
    kind: type[Echo | Http | Memcached], model: str
) -> None:
    """What was answered arrives whole: no reply is cut, and none is lost to a reset."""
    with serving(*kind.command, "--model", model) as (process, output, address):
        clients = [Load(address, kind) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            assert client.busy.wait(PATIENCE)
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(PATIENCE)
            assert not client.is_alive()
        assert process.wait(PATIENCE) == 0
        said = output.read()
    for client in clients:
        assert client.failure is None, client.failure
        replies, rest = divmod(len(client.received), len(client.reply))
        assert undated(client.received) == undated(client.reply * replies + client.reply[:rest])
        assert kind is Echo or rest == 0
    if kind is Memcached:
        sent = re.search(r"sent \d+ and (\d+)", said)
        assert sent
        assert sum(len(client.received) for client in clients) == int(sent[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [Echo, Http])
def test_the_second_signal_ends_it_at_once(
    kind: type[Echo | Http], model: str, number: signal.Signals
) -> None:
    """While a client does not take what it is sent, which the server waits for."""
    with (
        serving(*kind.command, "--model", model, program=PATIENT) as (process, _output, address),
        greedy_client(address, kind),
    ):
        process.send_signal(number)
        eventually(lambda: refused(address), lambda: "it still listens")
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(PATIENCE) == -number


@pytest.mark.parametrize("model", MODELS)
def test_the_second_signal_resets_clients_of_memcached(model: str) -> None:
    command = (*Memcached.command, "--model", model)
    with (
        serving(*command, program=PATIENT) as (process, _output, address),
        greedy_client(address, Memcached),
    ):
        process.send_signal(signal.SIGTERM)
        eventually(lambda: refused(address), lambda: "it still listens")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [Echo, Http, Memcached])
def test_the_exit_code_says_whether_clients_were_cut_off(
    kind: type[Echo | Http | Memcached], model: str
) -> None:
    command = (*kind.command, "--model", model)
    with (
        serving(*command, program=HASTY) as (process, _output, address),
        greedy_client(address, kind),
    ):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 1
    with (
        serving(*command) as (process, _output, address),
        socket.create_connection(address, PATIENCE) as idle,
    ):
        idle.sendall(kind.request)
        assert idle.recv(1)
        process.send_signal(signal.SIGTERM)
        # It need not hang up to have been answered.
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("model", MODELS)
def test_requests_behind_unsent_replies_are_answered(model: str, tmp_path: Path) -> None:
    """All came in one piece, and the first reply does not fit into what the client takes."""
    body = bytes(range(250)) * 20_000
    (tmp_path / "large").write_bytes(body)
    command = ("http", "--root", str(tmp_path), "--model", model)
    with serving(*command) as (process, _output, address), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 4)
        replies = bytearray(client.recv(1))
        process.send_signal(signal.SIGTERM)
        eventually(lambda: refused(address), lambda: "it still listens")
        while data := client.recv(1 << 20):
            replies += data
        assert process.wait(PATIENCE) == 0
    assert replies.count(body) == 4


#: Sends SIGTERM before the process waits for the first time, as a signal may come that
#: Python has not seen when it calls the kernel.
SIGNAL_BEFORE_THE_WAIT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

int epoll_wait(int epoll, struct epoll_event *events, int size, int timeout)
{
	int (*wait)(int, struct epoll_event *, int, int) = dlsym(RTLD_NEXT, "epoll_wait");
	static int sent;

	if (timeout != 0 && gettid() == getpid() && !sent++)
		raise(SIGTERM);
	return wait(epoll, events, size, timeout);
}
"""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [Echo, Http, Memcached])
def test_a_signal_just_before_the_wait_ends_it(
    kind: type[Echo | Http | Memcached],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = tmp_path / "signal_before_the_wait.so"
    compiler = ["gcc", "-shared", "-fPIC", "-xc", "-", "-o", str(library)]
    subprocess.run(compiler, input=SIGNAL_BEFORE_THE_WAIT, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    with serving(*kind.command, "--model", model) as (process, _output, _address):
        assert process.wait(PATIENCE) == 0


@contextmanager
def greedy_client(
    address: tuple[str, int], kind: type[Echo | Http | Memcached]
) -> Iterator[socket.socket]:
    """A client that has asked for more than it takes."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while True:  # until the server, which has no place for replies, reads no more
                client.sendall(kind.greedy * 100)
        yield client


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # the listener was closed within the handshake: the next one is refused
    return False
