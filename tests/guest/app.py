"""A handle on a victim: orders go to it, answers come back, and it can be killed."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.guest.victim import PROMISE, PROMISE_SIZE
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, repr=False)
class Status:
    """The application's state; see ``Victim.do_status``."""

    accepted: int
    taken: int
    pinned: int
    sent: int
    released_by_ack: int
    released_by_reset: int
    bad: int
    unknown: int
    pending: int
    written: list[int]
    received: list[int]
    wrong: int
    events: dict[str, int]
    errors: dict[str, int]

    def __repr__(self) -> str:
        """In brief: of many connections, sums."""
        values = {
            name: sum(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
        }
        return f"Status({values})"


class Nursery:
    """The process that victims are forked from."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-B", "-m", "tests.guest.victim", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )

    def bear(self) -> App:
        """Fork a victim."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        promise = os.memfd_create("promise")
        os.ftruncate(promise, PROMISE_SIZE)
        with theirs:
            socket.send_fds(self._requests, [b"\0"], [theirs.fileno(), promise])
            (pid,) = struct.unpack("=I", self._requests.recv(4))
        app = App(pid, control, mmap.mmap(promise, PROMISE_SIZE))
        os.close(promise)
        return app

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class App:
    """One victim."""

    def __init__(self, pid: int, control: socket.socket, promise: mmap.mmap) -> None:
        self.pid = pid
        self._control = control
        self._control.settimeout(PATIENCE)
        self._promise = promise

    def order(self, name: str, **arguments: Any) -> Any:
        """Have it do something; returns what it answers."""
        self._control.send(json.dumps([name, arguments]).encode())
        answer = json.loads(self._control.recv(1 << 20))
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"the victim failed to {name}: {answer['error']}")
        return answer

    def status(self) -> Status:
        return Status(**self.order("status"))

    @property
    def promised(self) -> int:
        """Bytes that the kernel had accepted when the victim last looked; outlives it."""
        accepted: int = PROMISE.unpack_from(self._promise)[0]
        return accepted

    def exit(self) -> None:
        """Have it end without closing anything."""
        self._control.send(json.dumps(["exit", {}]).encode())
        self._wait()

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def _wait(self) -> None:
        while self._control.recv(1 << 20):
            pass

    def close(self) -> None:
        """Let go of it; if it still lives, it ends."""
        self._control.close()
        self._promise.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
