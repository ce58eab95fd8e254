"""Ask QEMU what runs a guest's processors and what those have used; change its devices."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket


class QmpRefusalError(Exception):
    """QEMU does not do what it was asked to; the message is its own."""


class Qmp:
    """QEMU's machine protocol over a connected socket: one command at a time."""

    def __init__(self, sock: socket.socket) -> None:
        """Use this socket; QEMU greets on it once it runs."""
        self._sock = sock
        self._file = sock.makefile("rb")
        self._lock = threading.Lock()
        self._ready = False

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return what it returns; where QEMU has a hyphen, write ``_``.

        Raises:
            QmpRefusalError: QEMU refuses.
            ConnectionError: it has ended.
        """
        with self._lock:
            if not self._ready:
                self._file.readline()
                self._command("qmp_capabilities", {})
                self._ready = True
            return self._command(
                command, {name.replace("_", "-"): value for name, value in arguments.items()}
            )

    def _command(self, command: str, arguments: dict[str, object]) -> Any:
        message = {"execute": command, "arguments": arguments}
        self._sock.sendall(json.dumps(message).encode() + b"\n")
        for line in self._file:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpRefusalError(answer["error"]["desc"])
        raise ConnectionError("QEMU closed its control connection")

    def close(self) -> None:
        """Let go of the connection."""
        self._file.close()
        self._sock.close()


def thread_cpu_nanoseconds(pid: int, tid: int) -> int:
    """Return the processor time a host thread has had, to the nanosecond."""
    return int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0])
