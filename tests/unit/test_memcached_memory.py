"""``--memory`` bounds the server's memory, and nobody keeps the others waiting for good."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.memcached.conformance import Address, Conversation
from stackmap_testbed.memcached.pressure import LOADS, allow_descriptors, peak, press, server
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 160_000_000
NO_MEMORY = b"SERVER_ERROR out of memory storing object\r\n"
NO_ROOM_FOR_LINE = b"SERVER_ERROR out of memory reading request\r\n"


@pytest.fixture(scope="module")
def backend() -> tuple[str, ...]:
    """The server's options that choose the backend under test."""
    return ("--backend", "sockets")


@pytest.fixture(scope="module")
def pressed(backend: tuple[str, ...]) -> Iterator[tuple[Address, int]]:
    """One server for all loads: what one leaves behind adds to the next."""
    allow_descriptors()
    with server(*backend, "--memory", "64", "--max-connections", "2000") as running:
        yield running


@pytest.fixture
def small() -> Iterator[Address]:
    """A server with room for 8 MB."""
    with server("--backend", "sockets", "--memory", "8") as (address, _pid):
        yield address


@pytest.fixture
def smallest() -> Iterator[Address]:
    """A server with room for 1 MB."""
    with server("--backend", "sockets", "--memory", "1") as (address, _pid):
        yield address


@pytest.mark.timeout(600)
@pytest.mark.parametrize("load", LOADS)
def test_memory_is_bounded_and_another_client_is_served(
    pressed: tuple[Address, int], load: str
) -> None:
    address, pid = pressed
    probe = press(address, load)
    assert probe.count > 0
    print(f"{load}: peak {peak(pid) / 1e6:.0f} MB, {probe.count} answers")
    assert peak(pid) < MOST


def connect(address: Address) -> socket.socket:
    sock = socket.create_connection(address, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def receive(sock: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = sock.recv(size - len(received))
        if not data:
            break
        received += data
    return bytes(received)


def waiting_bytes(conversation: Conversation) -> int:
    report = conversation.ask(b"stats stackmap\r\n").decode()
    return int(dict(line.split()[1:3] for line in report.splitlines()[:-1])["waiting_bytes"])


def wait_until(conversation: Conversation, held: range) -> None:
    """Return once what waits in connections is so much."""
    eventually(
        lambda: waiting_bytes(conversation) in held, lambda: (waiting_bytes(conversation), held)
    )


def test_the_oldest_incomplete_value_is_dropped(small: Address) -> None:
    other = Conversation(small)
    other.ask(b"set k0 0 0 3\r\nold\r\n")
    clients = [connect(small) for _ in range(6)]
    for number, client in enumerate(clients):
        client.sendall(b"set k%d 0 0 1000000\r\n" % number + bytes(900_000))
        # The fifth is more than half of the memory, and so is the sixth after it.
        held = min(number + 1, 4) * 900_000
        wait_until(other, range(held, held + 1))
    for client in clients[:2]:
        assert receive(client, len(NO_MEMORY)) == NO_MEMORY
    # The old value would be stale, as in memcached.
    assert other.ask(b"get k0\r\n") == b"END\r\n"
    for client in clients:
        client.sendall(bytes(100_000) + b"\r\nversion\r\n")
    for client in clients[:2]:
        assert receive(client, 8) == b"VERSION "
    for client in clients[2:]:
        assert receive(client, 16) == b"STORED\r\nVERSION "
    assert waiting_bytes(other) == 0
    assert b"STAT store_no_memory 2\r\n" in other.ask(b"stats\r\n")
    assert b"STAT malloc_fails 2\r\n" in other.ask(b"stats\r\n")
    for client in clients:
        client.close()
    other.close()


def test_a_value_larger_than_half_of_the_memory_is_stored(smallest: Address) -> None:
    conversation = Conversation(smallest)
    value = b"v" * 700_000
    for _ in range(3):
        assert conversation.ask(b"set k 0 0 700000\r\n%b\r\n" % value) == b"STORED\r\n"
    assert conversation.ask(b"get k\r\n") == b"VALUE k 0 700000\r\n%b\r\nEND\r\n" % value
    conversation.close()


def test_the_oldest_long_line_is_refused_with_a_reply(small: Address) -> None:
    oldest_line_is_refused(small, b"get" + b" k" * 1_250_000)


def oldest_line_is_refused(address: Address, line: bytes) -> None:
    """Two clients send a line without its end; there is memory for one."""
    other = Conversation(address)
    clients = [connect(address) for _ in range(2)]
    for client in clients:
        client.sendall(line)
        wait_until(other, range(len(line), len(line) + 1))
    assert receive(clients[0], 100) == NO_ROOM_FOR_LINE
    clients[1].sendall(b"\r\n")
    assert receive(clients[1], 5) == b"END\r\n"
    assert b"STAT read_buf_oom 1\r\n" in other.ask(b"stats\r\n")
    for client in clients:
        client.close()
    other.close()


def test_a_client_whose_value_is_stored_gives_nothing_up(smallest: Address) -> None:
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.closing(Conversation(smallest)))
        client, oldest, youngest = (stack.enter_context(connect(smallest)) for _ in range(3))
        client.sendall(b"set k 0 0 100000\r\n" + bytes(50_000))
        wait_until(other, range(50_000, 50_001))
        client.sendall(bytes(50_000) + b"\r\n")
        assert receive(client, 8) == b"STORED\r\n"
        line = b"get" + b" k" * 150_000
        oldest.sendall(line)
        wait_until(other, range(len(line), len(line) + 1))
        youngest.sendall(line)
        assert receive(oldest, len(NO_ROOM_FOR_LINE)) == NO_ROOM_FOR_LINE
        client.sendall(b"version\r\n")
        assert receive(client, 8) == b"VERSION "


def is_reset(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLERR for _fd, events in poll.poll(0))


def test_the_oldest_slow_readers_are_disconnected(smallest: Address) -> None:
    """Clients ask for much and read nothing, and another one is served meanwhile.

    The kernel's buffers are full at the same byte for all of them.  That byte may be near the end
    of a value, and then so little waits in each connection that no memory is short.  So each
    client asks for 1000 bytes more than the one before.
    """
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.closing(Conversation(smallest)))
        for key, size in ((b"big", 200_000), (b"step", 1000)):
            command = b"set %b 0 0 %d\r\n%b\r\n" % (key, size, bytes(size))
            assert other.ask(command) == b"STORED\r\n"
        clients = [stack.enter_context(connect(smallest)) for _ in range(80)]
        for number, client in enumerate(clients):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(b"get step\r\n" * number + b"get big\r\n" * 50)

        def is_served_beside_a_disconnection() -> bool:
            assert other.ask(b"get nothing\r\n") == b"END\r\n"
            return any(map(is_reset, clients))

        eventually(is_served_beside_a_disconnection, lambda: other.ask(b"stats stackmap\r\n"))
        assert not is_reset(clients[-1])
        assert b"STAT response_obj_oom 0\r\n" not in other.ask(b"stats\r\n")


@pytest.mark.parametrize("removal", [b"set k 0 0 1\r\nx\r\n", b"delete k\r\n", b"flush_all\r\n"])
def test_a_value_that_goes_while_it_is_sent_arrives_whole(small: Address, removal: bytes) -> None:
    other = Conversation(small)
    with connect(small) as slow:
        other.ask(b"set k 0 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\n")
        slow.sendall(b"get k\r\n" * 12)
        whole = b"VALUE k 0 1000000\r\n" + b"v" * 1_000_000 + b"\r\nEND\r\n"
        # The rest is more than the sockets hold.
        assert receive(slow, len(whole)) == whole
        other.ask(removal)
        received = bytearray()
        while received.count(b"END\r\n") < 11:
            received += slow.recv(1 << 20)
        later = received.replace(whole, b"")
        assert later
        assert later.replace(b"VALUE k 0 1\r\nx\r\n", b"").replace(b"END\r\n", b"") == b""
    # Memory kept for that client is free again.
    assert waiting_bytes(other) == 0
    other.close()


def test_others_are_served_in_the_middle_of_a_line(small: Address) -> None:
    other = Conversation(small)
    with connect(small) as client:
        line = b"get" + b" k" * 400_000
        client.sendall(line)
        wait_until(other, range(len(line), len(line) + 1))
        client.sendall(b"\r\n")
        turns = 0
        while not select.select([client], [], [], 0)[0]:
            assert other.ask(b"get other\r\n") == b"END\r\n"
            turns += 1
        assert turns > 10
        assert receive(client, 5) == b"END\r\n"
    report = other.ask(b"stats\r\n").decode()
    lines = dict(line.split()[1:3] for line in report.splitlines()[:-1])
    assert int(lines["conn_yields"]) >= 400_000 // 64
    other.close()
