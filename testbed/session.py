"""A named lab in the background, seen from the commands that use it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LabError
from .places import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .lab import Progress

Message = dict[str, Any]

_DOWN_SECONDS = 20.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True)
class Session:
    """Where the lab of this name keeps its state, and how to talk to it."""

    name: str = "lab"

    def __post_init__(self) -> None:
        """Refuse a name that cannot be a directory's."""
        if not _NAME.fullmatch(self.name):
            raise LabError(
                f"a lab cannot be named {self.name!r}: use up to 32 of a-z, 0-9 and dashes"
            )

    @property
    def directory(self) -> Path:
        """The lab's directory: its consoles, logs and sockets."""
        return runtime_directory() / self.name

    @property
    def control(self) -> Path:
        """The socket on which the lab takes commands."""
        return self.directory / "control.sock"

    @property
    def wire_control(self) -> Path:
        """The socket on which the lab's wire takes commands."""
        return self.directory / "wire.sock"

    @property
    def _lock(self) -> Path:
        return runtime_directory() / f"{self.name}.lock"

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Be the one process that holds this lab; what a dead one left is removed.

        Raises:
            LabError: another process holds it.
        """
        with self._lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(
                    f"the lab {self.name!r} is up already: use it, or run 'stackmap lab down'"
                ) from None
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir()
            try:
                yield
            finally:
                shutil.rmtree(self.directory, ignore_errors=True)

    def held(self) -> bool:
        """Whether a process holds this lab, booting or up."""
        if not self._lock.exists():
            return False
        with self._lock.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def up(self, settings: Message, progress: Progress) -> None:
        """Start the background process and return when the lab is up.

        Raises:
            LabError: it does not come up; the reason is the one its process gave.
        """
        log = runtime_directory() / f"{self.name}.log"
        command = [
            sys.executable,
            "-m",
            f"{__package__}.background",
            self.name,
            json.dumps(settings),
        ]
        with log.open("w") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            self._follow(process, progress)
        except BaseException:
            process.terminate()
            process.wait()
            raise

    @staticmethod
    def _follow(process: subprocess.Popen[bytes], progress: Progress) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    raise LabError(message["error"])
                if "up" in message:
                    return
                progress(message["progress"])
        raise LabError(f"the lab's process ended with {process.wait()} before the lab was up")

    def status(self) -> Message:
        """Return the lab's state; ``{"up": False}`` if it is down.

        Raises:
            LabError: it is booting, or ends meanwhile.
        """
        if not self.held():
            return {"up": False}
        return next(self._ask({"do": "status"}))

    def execute(self, guest: str, argv: list[str]) -> Iterator[Message]:
        """Run a command in a guest: its output as it comes, in base64, at last its exit status.

        Raises:
            LabError: the lab is down or ends meanwhile, or the command cannot be run.
        """
        return self._ask({"do": "exec", "guest": guest, "argv": argv, "cwd": str(Path.cwd())})

    def down(self) -> bool:
        """Take the lab down; return False if it was not up.

        Raises:
            LabError: it does not go down in time.
        """
        if not self.held():
            return False
        for _ in self._ask({"do": "down"}):
            pass
        deadline = time.monotonic() + _DOWN_SECONDS
        while self.held():
            if time.monotonic() > deadline:
                raise LabError(f"the lab {self.name!r} did not go down within {_DOWN_SECONDS:g} s")
            time.sleep(0.05)
        return True

    def _ask(self, command: Message) -> Iterator[Message]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(str(self.control))
            except OSError:
                state = (
                    "is still booting: try again"
                    if self.held()
                    else "is not up: use 'stackmap lab up'"
                )
                raise LabError(f"the lab {self.name!r} {state}") from None
            # What is cut off, as JSON or by a reset, is the end of the lab too.
            with contextlib.suppress(OSError, json.JSONDecodeError):
                sock.sendall(json.dumps(command).encode() + b"\n")
                if command["do"] != "exec":
                    sock.shutdown(socket.SHUT_WR)
                with sock.makefile("rb") as lines:
                    for line in lines:
                        message = json.loads(line)
                        if "error" in message:
                            raise LabError(message["error"])
                        yield message
                        if "status" in message:
                            return
        if command["do"] != "down":
            raise LabError(f"the lab {self.name!r} has ended")
