"""Drive the wire between the guests: impair it, capture it, ask what it did."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.helper_process import end_process, start_process
from stackmap_testbed.lab.impairment import DIRECTIONS, Conditions

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

Way = Literal["to-server", "to-client"]

_CONTROL_NAME = "wire.sock"
_MAX_SOCKET_PATH = 107


class Wire:
    """A client of the relay process; safe to use from several threads."""

    def __init__(self, control: Path) -> None:
        """Connect to the control socket of a running relay."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(str(control))
        except OSError as error:
            self._sock.close()
            raise LabError(
                f"no wire answers at {control} ({error.strerror}): is the lab up with --wire relay?"
            ) from None
        self._file = self._sock.makefile("rb")
        self._lock = threading.Lock()

    def configure(
        self,
        *,
        loss: float | None = None,
        reorder: float | None = None,
        duplicate: float | None = None,
        delay_ms: float | None = None,
        drop_acks: Way | Literal["off"] | None = None,
        drop: Way | Literal["both", "off"] | None = None,
        direction: Way | Literal["both"] = "both",
        seed: int | None = None,
    ) -> None:
        """Change the wire now; what is None stays as it is.

        ``loss``, ``reorder`` and ``duplicate`` are probabilities and apply, with
        ``delay_ms``, to ``direction``.  ``drop_acks`` withholds pure TCP
        acknowledgements going that way, ``drop`` withholds everything; both take
        ``"off"``.  ``seed`` restarts the random decisions of both directions.

        Raises:
            LabError: a value is out of range.
        """
        numbers = {"loss": loss, "reorder": reorder, "duplicate": duplicate, "delay_ms": delay_ms}
        given = {name: value for name, value in numbers.items() if value is not None}
        changes: dict[str, dict[str, Any]] = {name: {} for name in DIRECTIONS}
        for name in DIRECTIONS:
            if direction in (name, "both"):
                changes[name].update(given)
            if drop_acks is not None:
                changes[name]["drop_acks"] = drop_acks == name
            if drop is not None:
                changes[name]["drop"] = drop in (name, "both")
        self._ask({"do": "configure", "directions": changes, "seed": seed})

    def clear(self) -> None:
        """Make it a clean wire again, in both directions."""
        clean = asdict(Conditions())
        self._ask({"do": "configure", "directions": dict.fromkeys(DIRECTIONS, clean)})

    def capture(self, path: Path) -> tuple[Path, Path]:
        """Start to capture; return the file of sent frames and the file of delivered ones.

        The first holds every frame put on the wire, the second only those that
        came off it, in the order they did.  A capture already running ends.
        """
        self._ask({"do": "capture", "path": str(path.resolve())})
        return (
            path.with_name(path.name + ".sent.pcap"),
            path.with_name(path.name + ".delivered.pcap"),
        )

    def stop_capture(self) -> dict[str, int]:
        """Finish the capture; return how many frames were sent and delivered during it."""
        return self._ask({"do": "stop-capture"})

    def stats(self) -> dict[str, Any]:
        """Return counters and conditions of each direction."""
        return self._ask({"do": "stats"})

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        line = b""
        # An answer that is cut off, or none, means that it has ended.
        with self._lock, contextlib.suppress(ConnectionError):
            self._sock.sendall(json.dumps(command).encode() + b"\n")
            line = self._file.readline()
        if not line:
            raise LabError(
                "the process that carries the wire has ended: take the lab down and up again"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LabError(f"the wire refused: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let go of the control connection; the wire stays as it is."""
        self._file.close()
        self._sock.close()


class RelayProcess:
    """The wire's process and this process's connection to it."""

    def __init__(self, server: socket.socket, client: socket.socket, workdir: Path) -> None:
        """Start the relay on its ends of the two frame sockets.

        Raises:
            LabError: the control socket cannot be created in ``workdir``.
        """
        self.control = workdir / _CONTROL_NAME
        if len(str(self.control)) > _MAX_SOCKET_PATH:
            raise LabError(
                f"the path {workdir} is too long for a Unix socket: choose a shorter work directory"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(str(self.control))
            except OSError as error:
                raise LabError(
                    f"{self.control} cannot be created ({error.strerror}): does a lab use it?"
                ) from None
            listener.listen()
            descriptors = [sock.fileno() for sock in (server, client, listener)]
            command = [sys.executable, "-m", f"{__package__}.relay", *map(str, descriptors)]
            self._process: subprocess.Popen[bytes] = start_process(
                command, workdir / "wire.log", descriptors
            )
        self.wire = Wire(self.control)

    def close(self) -> None:
        """End the relay, finishing any capture, and remove its socket."""
        with contextlib.suppress(LabError, OSError):  # gone already, it has nothing to finish
            self.wire.stop_capture()
        self.wire.close()
        end_process(self._process)
        self.control.unlink(missing_ok=True)
