"""README's first program and the programs of ``examples/``, each as it is, with real clients.

``tests/guest/test_examples.py`` runs the same on rings.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from pyroute2 import netns

from stackmap import DEVICE
from tests.receiving import receive_exactly
from tests.reset import reset_on_close
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
PATTERN = bytes(range(251)) * 4096
#: Bytes that a client which never reads sends, if it is let.
FLOOD = 100 << 20
#: Bytes that a server may take for one such client, besides what it takes before.
BOUND = 12 << 20
#: Seconds without progress after which a sender is taken to be held up.
STANDSTILL = 1.0


class Place:
    """Where a program runs and is reached: on sockets, in a network namespace of its own."""

    backend = "sockets"
    address = peer_address = "127.0.0.1"

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    @contextmanager
    def python(self, *arguments: str) -> Iterator[tuple[int, IO[str]]]:
        """Run Python there; gives its process id, and what it prints."""
        command = ["ip", "netns", "exec", self._namespace, sys.executable, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout
            try:
                yield process.pid, process.stdout
            finally:
                process.kill()

    @contextmanager
    def clients(self) -> Iterator[None]:
        """Sockets made inside are those of clients."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            netns.setns(self._namespace)
            yield
        finally:
            netns.setns(home)
            os.close(home)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    name = f"examples-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield Place(name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Program:
    """A program that runs, and listens."""

    def __init__(self, place: Place, pid: int, number: int) -> None:
        self.place = place
        self.pid = pid
        self.number = number
        self.memory = self.resident()

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """A client, which waits as long as is reasonable."""
        with self.place.clients():
            sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        try:
            sock.connect((self.place.address, self.number))
        except OSError:
            sock.close()
            raise
        return sock

    def resident(self) -> int:
        """Bytes of memory that are the program's own."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        assert found, "the program has ended"
        return int(found[1]) << 10

    def check(self, bound: int = BOUND) -> None:
        """It runs, and has not taken more memory than that since it started."""
        assert self.resident() - self.memory < bound


@contextmanager
def running(place: Place, *arguments: str, number: int = 0) -> Iterator[Program]:
    """Run Python with these arguments; the program listens on ``number``, or says where."""
    with place.python(*arguments) as (pid, output):
        if not number:
            line = output.readline()
            said = rf"listening on .*:(\d+), backend {place.backend}(, pid \d+)?\n"
            found = re.fullmatch(said, line)
            assert found, line
            number = int(found[1])
        eventually(lambda: is_listening(pid, number), lambda: "nobody listens", patience=PATIENCE)
        assert has_device_open(pid) == (place.backend == "stackmap")
        yield Program(place, pid, number)


def is_listening(pid: int, number: int) -> bool:
    """Whether a socket listens on this port in the network namespace of a process."""
    table = Path(f"/proc/{pid}/net/tcp").read_text()
    return re.search(rf":{number:04X} \S+ 0A ", table) is not None


@contextmanager
def example(place: Place, name: str, *options: str) -> Iterator[Program]:
    """Run a program of ``examples/``."""
    listen = ["--backend", place.backend, "--listen", f"{place.address}:0"]
    with running(place, f"examples/{name}.py", *listen, *options) as program:
        yield program


def has_device_open(pid: int) -> bool:
    """Whether a process has a port on rings."""
    return Path(DEVICE) in [fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()]


def receive_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


def flood(sock: socket.socket, data: bytes, *, most: int = FLOOD) -> int:
    """Send ``data`` over and over until the peer holds it up; returns how many bytes went."""
    sock.settimeout(STANDSTILL)
    sent = 0
    with suppress(TimeoutError):
        while sent < most:
            sent += sock.send(memoryview(data)[sent % len(data) :])
    sock.settimeout(PATIENCE)
    return sent


def reset(sock: socket.socket) -> None:
    reset_on_close(sock)
    sock.close()


# -- README --


@pytest.fixture
def readme(place: Place) -> Iterator[Program]:
    """README's example, word for word."""
    (program,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert '("", 7007)' in program
    with running(place, "-c", program, number=7007) as running_program:
        yield running_program


def test_readme_echoes(readme: Program) -> None:
    with readme.connect() as client:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"last words"


def test_readme_holds_little_for_a_client_that_does_not_read(readme: Program) -> None:
    with readme.connect() as greedy, readme.connect() as other:
        sent = flood(greedy, PATTERN)
        assert sent < FLOOD
        readme.check()
        other.sendall(b"meanwhile")
        assert receive_exactly(other, 9) == b"meanwhile"
        # It loses nothing: what was held up comes once it is read.
        expected = PATTERN * (sent // len(PATTERN)) + PATTERN[: sent % len(PATTERN)]
        assert receive_exactly(greedy, sent) == expected
        greedy.shutdown(socket.SHUT_WR)
        assert receive_all(greedy) == b""


def test_readme_survives_clients_that_vanish(readme: Program) -> None:
    for _ in range(3):
        client = readme.connect()
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
        flood(client, PATTERN, most=1 << 20)
        reset(client)
    with readme.connect() as client:
        client.sendall(b"still there")
        assert receive_exactly(client, 11) == b"still there"
    readme.check()


# -- chat --


class Guest:
    """A client of the chat server, line by line."""

    def __init__(self, chat: Program, receive_buffer: int = 0) -> None:
        self.sock = chat.connect(receive_buffer)
        self._file = self.sock.makefile("rb")
        welcome = self.hear()
        assert welcome.startswith(b"* you are ")
        self.name = welcome.split()[-1]

    def hear(self) -> bytes:
        """The next line."""
        return self._file.readline().rstrip(b"\n")

    def hear_until(self, line: bytes) -> list[bytes]:
        """The lines up to this one."""
        heard: list[bytes] = []
        while not heard or heard[-1] != line:
            heard.append(self.hear())
            assert heard[-1], heard
        return heard

    def leave(self) -> None:
        self._file.close()
        self.sock.close()


@pytest.fixture(params=["chat", "chat_actors"])
def chat(place: Place, request: pytest.FixtureRequest) -> Iterator[Program]:
    with example(place, request.param) as program:
        yield program


def test_chat_sends_lines_to_all_others(chat: Program) -> None:
    guests = [Guest(chat) for _ in range(3)]
    for newcomer, guest in enumerate(guests):
        for later in guests[newcomer + 1 :]:
            assert guest.hear() == b"* %s is here" % later.name
    guests[0].sock.sendall(b"hello\nhow are")
    guests[1].sock.sendall(b"fine\n")
    assert guests[2].hear_until(b"%s: hello" % guests[0].name)
    guests[0].sock.sendall(b" you\n")
    guests[0].sock.shutdown(socket.SHUT_WR)  # half a close: it has said all
    lines = guests[2].hear_until(b"* %s has left" % guests[0].name)
    assert b"%s: how are you" % guests[0].name in lines
    assert guests[0].hear_until(b"%s: fine" % guests[1].name)
    assert guests[0].hear() == b""
    for guest in guests:
        guest.leave()


def test_chat_forgets_a_client_lost_in_mid_line(chat: Program) -> None:
    here, gone = Guest(chat), Guest(chat)
    gone.sock.sendall(b"I just want to s")
    time.sleep(0.1)
    gone._file.close()
    reset(gone.sock)
    heard = here.hear_until(b"* %s has left" % gone.name)
    assert heard == [b"* %s is here" % gone.name, heard[-1]]
    here.leave()


@pytest.mark.parametrize("line", [b"x" * 1025 + b"\n", b"x" * 100_000])
def test_chat_ends_a_line_that_is_too_long(chat: Program, line: bytes) -> None:
    here, loud = Guest(chat), Guest(chat)
    loud.sock.sendall(b"x" * 1024 + b"\n")
    here.hear_until(b"%s: %s" % (loud.name, b"x" * 1024))
    with suppress(ConnectionError):
        loud.sock.sendall(line)
    here.hear_until(b"* %s has left" % loud.name)
    loud.leave()
    here.sock.sendall(b"quiet at last\n")
    Guest(chat).leave()
    here.leave()


def test_chat_disconnects_slow_readers(chat: Program) -> None:
    here, other, slow = Guest(chat), Guest(chat), Guest(chat, receive_buffer=4096)
    text = (b"%s\n" % (b"y" * 1000)) * 100 + b"end\n"
    heard: list[bytes] = []
    while b"* %s has left" % slow.name not in heard:
        other.sock.sendall(text)
        heard += here.hear_until(b"%s: end" % other.name)  # so that one of them does keep up
    chat.check()
    other.sock.shutdown(socket.SHUT_WR)
    here.hear_until(b"* %s has left" % other.name)
    for guest in (here, other, slow):
        guest.leave()


# -- proxy --


@pytest.fixture(params=["proxy", "proxy_asyncio"])
def proxy(place: Place, request: pytest.FixtureRequest) -> Iterator[tuple[Program, socket.socket]]:
    with proxying(place, request.param) as program_and_server:
        yield program_and_server


@contextmanager
def proxying(place: Place, name: str) -> Iterator[tuple[Program, socket.socket]]:
    """The proxy, and where it connects to."""
    with place.clients():  # it is on the other side of the wire, as clients are
        server = socket.create_server(("", 0))
    server.settimeout(PATIENCE)
    to = f"{place.peer_address}:{server.getsockname()[1]}"
    with server, example(place, name, "--to", to) as program:
        yield program, server


def joined(proxy: tuple[Program, socket.socket]) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection through the proxy."""
    program, server = proxy
    client = program.connect()
    accepted, _address = server.accept()
    accepted.settimeout(PATIENCE)
    return client, accepted


def test_proxy_passes_on_each_half_by_itself(proxy: tuple[Program, socket.socket]) -> None:
    client, server = joined(proxy)
    with client, server:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b"request"
        server.sendall(PATTERN)
        server.shutdown(socket.SHUT_WR)
        assert receive_all(client) == PATTERN


def test_proxy_carries_both_ways_at_once(proxy: tuple[Program, socket.socket]) -> None:
    client, server = joined(proxy)
    received: dict[str, bytes] = {}

    def send(sock: socket.socket) -> None:
        for _ in range(8):
            sock.sendall(PATTERN)
        sock.shutdown(socket.SHUT_WR)

    def read(name: str, sock: socket.socket) -> None:
        received[name] = hashlib.sha256(receive_all(sock)).digest()

    with client, server:
        threads = [
            *(threading.Thread(target=send, args=(sock,)) for sock in (client, server)),
            threading.Thread(target=read, args=("client", client)),
            threading.Thread(target=read, args=("server", server)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert received == dict.fromkeys(("client", "server"), hashlib.sha256(PATTERN * 8).digest())


def test_proxy_holds_up_the_sender_when_nobody_reads(
    proxy: tuple[Program, socket.socket],
) -> None:
    client, server = joined(proxy)
    with client, server:
        sent = flood(client, PATTERN)
        assert sent < FLOOD
        proxy[0].check()
        other = joined(proxy)
        with other[0], other[1]:
            other[0].sendall(b"meanwhile")
            assert receive_exactly(other[1], 9) == b"meanwhile"
        got = receive_exactly(server, sent)
        assert got == PATTERN * (sent // len(PATTERN)) + PATTERN[: sent % len(PATTERN)]


@pytest.mark.parametrize("vanishing", ["client", "server"])
def test_proxy_passes_on_a_reset(proxy: tuple[Program, socket.socket], vanishing: str) -> None:
    client, server = joined(proxy)
    gone, left = (client, server) if vanishing == "client" else (server, client)
    client.sendall(b"half a mess")
    assert receive_exactly(server, 11) == b"half a mess"
    flood(left, PATTERN, most=1 << 20)
    reset(gone)
    with left, pytest.raises(ConnectionError):
        receive_all(left)  # without an error, it would see the other's end
    proxy[0].check()


def test_proxy_refuses_when_it_is_refused(proxy: tuple[Program, socket.socket]) -> None:
    program, server = proxy
    server.close()
    for _ in range(3):
        # The reset may come before the client has seen that it is connected.
        with suppress(ConnectionError), program.connect() as client:
            client.sendall(b"anybody?")
            assert client.recv(1) == b""
    program.check()


# -- RPC --

_HEADER = struct.Struct("!II")
#: As in the program.
MAX_FRAME = 64 * 1024


@pytest.fixture(params=["rpc_server", "rpc_service"])
def rpc(place: Place, request: pytest.FixtureRequest) -> Iterator[Program]:
    with example(place, request.param) as program:
        yield program


def request(number: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), number) + payload


def replies(sock: socket.socket, count: int) -> dict[int, bytes]:
    found = {}
    for _ in range(count):
        size, number = _HEADER.unpack(receive_exactly(sock, _HEADER.size))
        assert number not in found
        found[number] = receive_exactly(sock, size)
    return found


def payload_of(number: int) -> bytes:
    return PATTERN[number : number + number * 97 % MAX_FRAME]


def test_rpc_answers_each_request_once(rpc: Program) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(rpc.connect()) for _ in range(4)]
        senders = []
        for client in clients:
            data = b"".join(request(number, payload_of(number)) for number in range(200))
            senders.append(threading.Thread(target=client.sendall, args=(data,)))
            senders[-1].start()
        expected = {number: hashlib.sha256(payload_of(number)).digest() for number in range(200)}
        for client in clients:
            assert replies(client, 200) == expected
        for sender in senders:
            sender.join()


def test_rpc_answers_a_client_that_has_closed_its_half(rpc: Program) -> None:
    with rpc.connect() as client:
        client.sendall(b"".join(request(number, b"%d" % number) for number in range(100)))
        client.sendall(request(100, b"never complete")[:-1])
        client.shutdown(socket.SHUT_WR)
        found = replies(client, 100)
        assert found == {number: hashlib.sha256(b"%d" % number).digest() for number in range(100)}
        assert receive_all(client) == b""


def test_rpc_takes_the_largest_frame_and_none_larger(rpc: Program) -> None:
    with rpc.connect() as client, rpc.connect() as other:
        client.sendall(request(1, PATTERN[:MAX_FRAME]))
        assert replies(client, 1) == {1: hashlib.sha256(PATTERN[:MAX_FRAME]).digest()}
        client.sendall(_HEADER.pack(MAX_FRAME + 1, 2))
        with suppress(ConnectionError):  # at once, or after a farewell
            assert client.recv(1) == b""
        other.sendall(request(3, b""))
        assert replies(other, 1) == {3: hashlib.sha256(b"").digest()}


def test_rpc_holds_up_a_client_that_does_not_read(rpc: Program) -> None:
    small = request(7, b"")  # the reply is four times as long
    with rpc.connect() as greedy, rpc.connect() as other:
        sent = flood(greedy, small * 8192)
        assert sent < FLOOD
        rpc.check()
        other.sendall(request(1, b"meanwhile"))
        assert replies(other, 1) == {1: hashlib.sha256(b"meanwhile").digest()}


def test_rpc_forgets_a_client_lost_in_mid_message(rpc: Program) -> None:
    for cut in (3, 8, 5000):
        client = rpc.connect()
        client.sendall(request(0, b""))
        replies(client, 1)
        client.sendall(request(1, PATTERN[:30_000]) * 4 + request(2, PATTERN[:10_000])[:cut])
        reset(client)
    with rpc.connect() as client:
        client.sendall(request(1, b"x"))
        assert replies(client, 1) == {1: hashlib.sha256(b"x").digest()}
    rpc.check()


# -- all of them --


def test_the_readme_program_survives_clients_gone_before_accept(readme: Program) -> None:
    check_that_it_survives_early_resets(readme)


@pytest.mark.parametrize("name", ["chat", "rpc_server"])
def test_loops_survive_clients_gone_before_accept(place: Place, name: str) -> None:
    with example(place, name) as server:
        check_that_it_survives_early_resets(server)


@pytest.mark.parametrize("name", ["chat_actors", "rpc_service"])
def test_other_models_survive_clients_gone_before_accept(place: Place, name: str) -> None:
    with example(place, name) as server:
        check_that_it_survives_early_resets(server)


def check_that_it_survives_early_resets(server: Program) -> None:
    """As those of a port scan are."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            reset(server.connect())
    finally:
        os.kill(server.pid, signal.SIGCONT)
    with server.connect() as client:
        client.shutdown(socket.SHUT_WR)
        receive_all(client)
    server.check()


@pytest.mark.parametrize(
    ("name", "limit", "smaller"),
    [
        ("chat", "MAX_CLIENTS = 500", "MAX_CLIENTS = 2"),
        ("proxy", "MAX_SOCKETS = 1000", "MAX_SOCKETS = 4"),
        ("rpc_server", "MAX_CLIENTS = 500", "MAX_CLIENTS = 2"),
    ],
)
def test_one_client_too_many_waits_until_another_leaves(
    place: Place, name: str, limit: str, smaller: str
) -> None:
    check_one_client_too_many(place, name, limit, smaller)


@pytest.mark.parametrize(
    ("name", "limit", "smaller"),
    [
        ("chat_actors", "MAX_CLIENTS = 500", "MAX_CLIENTS = 2"),
        ("proxy_asyncio", "MAX_SOCKETS = 1000", "MAX_SOCKETS = 4"),
        ("rpc_service", "MAX_CLIENTS = 500", "MAX_CLIENTS = 2"),
    ],
)
def test_one_client_too_many_waits_in_other_models(
    place: Place, name: str, limit: str, smaller: str
) -> None:
    check_one_client_too_many(place, name, limit, smaller)


def check_one_client_too_many(place: Place, name: str, limit: str, smaller: str) -> None:
    with example(place, "chat") as chat:
        check_limit(place, chat, name, limit, smaller)


def check_limit(place: Place, chat: Program, name: str, limit: str, smaller: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert source.count(limit) == 1
    options = ["--backend", place.backend, "--listen", f"{place.address}:0"]
    if name.startswith("proxy"):
        options += ["--to", f"{place.address}:{chat.number}"]
    with running(place, "-c", source.replace(limit, smaller), *options) as program:
        served: list[socket.socket] = []
        for _ in range(5):
            client = program.connect()
            client.sendall(request(1, b"x") if name.startswith("rpc") else b"hello\n")
            if len(served) == 2:
                client.settimeout(STANDSTILL)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(PATIENCE)
                served.pop(0).close()
            assert client.recv(1)
            served.append(client)
        for client in served:
            client.close()
