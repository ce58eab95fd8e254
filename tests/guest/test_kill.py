"""Kill -9 with data in flight: what was accepted arrives, and nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

from stackmap import Event, RingPort
from tests.guest.children import Child
from tests.guest.wire import ADDRESS, NIC, in_peer_namespace

ROUNDS = 50
BLOCK = bytes(range(256)) * 16
#: Bytes that wait for the ring at most.
BACKLOG = 1 << 18


def flood(listener: socket.socket, reports: int, _tell: object) -> None:
    """Made to be killed: accept one connection, attach it, send for ever, report accepted bytes."""
    accepted, _address = listener.accept()
    port = RingPort(NIC)
    connection = port.attach(accepted)
    while not port.exchange(1.0):
        pass
    while True:
        if connection.pending < BACKLOG:
            connection.write(BLOCK)
        for segment in port.exchange(0.0 if connection.pending < BACKLOG else 1.0):
            if segment.event & (Event.ERROR | Event.CLOSED):
                return
        os.write(reports, b"%d\n" % port.stats().tx_bytes)


def loaded_users() -> int:
    """References on the module, but the qdisc's."""
    for line in Path("/proc/modules").read_text().splitlines():
        if line.startswith("stackmap "):
            return int(line.split()[2])
    raise AssertionError("the module is not loaded")


def test_accepted_slots_arrive() -> None:
    idle = loaded_users()
    for number in range(ROUNDS):
        reading, writing = os.pipe()
        with socket.create_server((ADDRESS, 0)) as listener:
            listener.settimeout(60)
            address = listener.getsockname()
            child = Child(partial(flood, listener, writing))
        os.close(writing)
        with child, open(reading, "rb") as reports:
            peer = in_peer_namespace()
            peer.settimeout(60)
            peer.connect(address)
            peer.sendall(b"go")
            # Read some, so that there is data in flight and data that the window holds back.
            got = peer.recv(1 + number * 1000)
            time.sleep(0.002 * (number % 7))
            os.kill(child.pid, signal.SIGKILL)
            promised = reports.read()
        # The child reports each number of accepted bytes after its sync; the last may be
        # cut off by the kill, and more may have been accepted than it lived to say.
        accepted = max(map(int, promised.split(b"\n")[:-1]), default=0)
        received = len(got)
        digest = hashlib.sha256(got)
        while chunk := peer.recv(65536):
            received += len(chunk)
            digest.update(chunk)
        peer.close()
        assert received >= accepted, f"round {number}: {received} of {accepted} bytes arrived"
        expected = hashlib.sha256((BLOCK * (received // 4096 + 1))[:received])
        assert digest.digest() == expected.digest(), f"round {number}: wrong bytes"
    deadline = time.monotonic() + 30
    while loaded_users() > idle:
        assert time.monotonic() < deadline, "a port outlives its process and its data"
        time.sleep(0.1)
