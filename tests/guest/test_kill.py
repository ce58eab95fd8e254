"""Kill -9 with data in flight: what was accepted arrives, and nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.guest.wire import ADDRESS, NIC, in_peer_namespace

ROUNDS = 50
PROGRAM = Path(__file__).with_name("flood.py")


def loaded_users() -> int:
    """References on the module, but the qdisc's."""
    for line in Path("/proc/modules").read_text().splitlines():
        if line.startswith("stackmap "):
            return int(line.split()[2])
    raise AssertionError("the module is not loaded")


def test_what_was_accepted_arrives() -> None:
    idle = loaded_users()
    for number in range(ROUNDS):
        with socket.create_server((ADDRESS, 0)) as listener:
            listener.settimeout(60)
            address = listener.getsockname()
            process = subprocess.Popen(
                [sys.executable, PROGRAM, NIC, str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdout=subprocess.PIPE,
            )
            peer = in_peer_namespace()
            peer.settimeout(60)
            peer.connect(address)
        peer.sendall(b"go")
        # Read some, so that there is data in flight and data that the window holds back.
        got = peer.recv(1 + number * 1000)
        time.sleep(0.002 * (number % 7))
        os.kill(process.pid, signal.SIGKILL)
        promised, _ = process.communicate()
        # The program reports each number of accepted bytes after its sync; the last may be
        # cut off by the kill, and more may have been accepted than it lived to say.
        reports = [int(word) for word in promised.split(b"\n")[:-1]]
        accepted = reports[-1] if reports else 0
        received = len(got)
        digest = hashlib.sha256(got)
        while chunk := peer.recv(65536):
            received += len(chunk)
            digest.update(chunk)
        peer.close()
        assert received >= accepted, f"round {number}: {received} of {accepted} bytes arrived"
        block = bytes(range(256)) * 16
        expected = hashlib.sha256((block * (received // 4096 + 1))[:received])
        assert digest.digest() == expected.digest(), f"round {number}: wrong bytes"
    deadline = time.monotonic() + 30
    while loaded_users() > idle:
        assert time.monotonic() < deadline, "a port outlives its process and its data"
        time.sleep(0.1)
