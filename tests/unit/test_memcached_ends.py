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

from stackmap._sockets import SocketPort
from stackmap.memcached import Server, Store
from tests.unit.test_port_contract import (  # noqa: F401 (fixtures, used by name)
    PATIENCE,
    Listening,
    listening,
    port_factory,
    reset,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from stackmap import Port

CLIENTS = 10
LARGE = 1_000_000


@contextmanager
def serving(port: Port, listener: socket.socket) -> Iterator[None]:
    server = Server(port, [listener], Store(64 << 20), max_connections=CLIENTS + 1)
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


def test_clients_that_read_nothing_and_reset_leave_nothing(
    port_factory: Callable[[], Port], listening: Callable[[], Listening]
) -> None:
    """They ask for much, so that the server stops to read from them, and then say more."""
    listener, connect = listening()
    with port_factory() as port, serving(port, listener), connect() as admin:
        admin.settimeout(PATIENCE)
        admin.sendall(b"set large 0 0 %d\r\n" % LARGE + b"v" * LARGE + b"\r\n")
        assert admin.recv(8, socket.MSG_WAITALL) == b"STORED\r\n"
        for _ in range(2):
            clients = [connect() for _ in range(CLIENTS)]
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.sendall(b"get large\r\n" * 20)
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
