# ruff: noqa: F811 (fixtures are imported, and parameters are named after them)
"""Clients of the memcached server that leave at bad moments: it keeps nothing of them."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from stackmap._sockets import SocketPort
from stackmap.memcached import Server, Store
from stackmap.memcached.actors import ActorServer
from stackmap.memcached.service import ServiceServer
from tests.unit.link import (  # noqa: F401 (fixtures, used by name)
    PATIENCE,
    Listening,
    listening,
    port_factory,
    reset,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stackmap import Port

CLIENTS = 10
LARGE = 1_000_000


MODELS = [Server, ServiceServer, ActorServer]


@contextmanager
def serving(
    port: Port,
    listener: socket.socket,
    model: type[Server | ServiceServer | ActorServer] = Server,
    memory: int = 64 << 20,
    max_connections: int = CLIENTS + 1,
) -> Iterator[None]:
    server = model(port, [listener], Store(memory), max_connections=max_connections)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(PATIENCE)


def test_stop_wakes_no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server, told to stop by another thread, ends before that has woken it."""
    ended = threading.Event()
    write = os.eventfd_write

    def write_late(fd: int, value: int) -> None:
        ended.wait(0.5)
        write(fd, value)

    def run() -> None:
        server.run()
        ended.set()

    monkeypatch.setattr(os, "eventfd_write", write_late)
    with SocketPort() as port, socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(port, [listener], Store(1 << 20))
        thread = threading.Thread(target=run)
        thread.start()
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"version\r\n")
            assert client.recv(7) == b"VERSION"
            stopper = threading.Thread(target=server.stop)
            stopper.start()
            client.sendall(b"quit\r\n")
            stopper.join(PATIENCE)
        assert ended.wait(PATIENCE)
        thread.join()
        server.stop()  # too late to do anything


def connections(client: socket.socket) -> int:
    """How many clients the server says that it has."""
    client.sendall(b"stats\r\n")
    reply = b""
    while not reply.endswith(b"END\r\n"):
        more = client.recv(1 << 16)
        assert more
        reply += more
    found = re.search(rb"STAT curr_connections (\d+)\r\n", reply)
    assert found
    return int(found[1])


@pytest.mark.parametrize("model", MODELS)
def test_values_of_all_sizes_come_back(
    port_factory: Callable[[], Port],
    listening: Callable[[], Listening],
    model: type[Server | ServiceServer | ActorServer],
) -> None:
    listener, connect = listening()
    with port_factory() as port, serving(port, listener, model), connect() as client:
        client.settimeout(PATIENCE)
        with client.makefile("rb") as replies:
            for size in (0, 1, 1459, 4096, LARGE):
                value = os.urandom(size)
                client.sendall(b"ms k %d T0\r\n%b\r\nmg k v\r\nget k\r\n" % (size, value))
                assert replies.readline() == b"HD\r\n"
                assert replies.readline() == b"VA %d\r\n" % size
                assert replies.read(size + 2) == value + b"\r\n"
                assert replies.readline() == b"VALUE k 0 %d\r\n" % size
                assert replies.read(size + 7) == value + b"\r\nEND\r\n"
            client.sendall(b"stats stackmap\r\n")
            report = dict(line.split()[1:] for line in iter(replies.readline, b"END\r\n"))
    carried = b"stackmap_rx_bytes" if port.backend == "stackmap" else b"stackmap_socket_rx_bytes"
    assert int(report[carried]) > LARGE


def test_clients_that_read_nothing_and_reset_leave_nothing(
    port_factory: Callable[[], Port], listening: Callable[[], Listening]
) -> None:
    leave(port_factory, listening, Server)


@pytest.mark.parametrize("model", MODELS[1:])
def test_other_models_leave_nothing_either(
    port_factory: Callable[[], Port],
    listening: Callable[[], Listening],
    model: type[Server | ServiceServer | ActorServer],
) -> None:
    leave(port_factory, listening, model)


def leave(
    port_factory: Callable[[], Port],
    listening: Callable[[], Listening],
    model: type[Server | ServiceServer | ActorServer],
) -> None:
    """They ask for much, so that the server stops to read from them, and then say more."""
    listener, connect = listening()
    with port_factory() as port, serving(port, listener, model), connect() as admin:
        admin.settimeout(PATIENCE)
        admin.sendall(b"set large 0 0 %d\r\n" % LARGE + b"v" * LARGE + b"\r\n")
        assert admin.recv(8, socket.MSG_WAITALL) == b"STORED\r\n"
        for _ in range(2):
            clients = [connect() for _ in range(CLIENTS)]
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.sendall(b"get large\r\n" * 20)
            eventually(
                lambda: connections(admin) == CLIENTS + 1,
                lambda: connections(admin),
                patience=PATIENCE,
            )
            for _ in range(5):
                assert connections(admin) == CLIENTS + 1
                time.sleep(0.1)
                for client in clients:
                    client.sendall(b"get large\r\n")
            for client in clients:
                reset(client)
            eventually(
                lambda: connections(admin) <= 1, lambda: connections(admin), patience=PATIENCE
            )
