"""A named lab in the background, seen from the commands that use it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.foreground import Foreground, window_size
from stackmap_testbed.lab.runtime_dir import runtime_directory
from stackmap_testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.lab.lab import Progress

Message = dict[str, Any]

_DOWN_SECONDS = 20.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def sessions() -> list[Session]:
    """The labs that are booting or up."""
    found = [Session(lock.stem) for lock in runtime_directory().glob("*.lock")]
    return [session for session in found if session.held()]


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
    def log(self) -> Path:
        """The message of the lab's process when the lab is up."""
        return self.directory / "lab.log"

    @property
    def _lock(self) -> Path:
        return runtime_directory() / f"{self.name}.lock"

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Be the one process that holds this lab; what a dead one left is removed.

        Raises:
            LabError: another process holds it.
        """
        with self._take_lock():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir()
            try:
                yield
            finally:
                shutil.rmtree(self.directory, ignore_errors=True)
                self._lock.unlink()

    def _take_lock(self) -> IO[str]:
        while True:
            lock = self._lock.open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder may have removed it after it was opened here.
                if os.path.samestat(os.fstat(lock.fileno()), self._lock.stat()):
                    return lock
            except BlockingIOError:
                lock.close()
                raise LabError(
                    f"the lab {self.name!r} is up already: use it, or run {self.command('down')}"
                ) from None
            except FileNotFoundError:
                pass
            lock.close()

    def held(self) -> bool:
        """Whether a process holds this lab, booting or up."""
        try:
            lock = self._lock.open()
        except FileNotFoundError:
            return False
        with lock:
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
        command = [
            sys.executable,
            "-m",
            f"{__package__}.background",
            self.name,
            json.dumps(settings),
        ]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            )
            try:
                self._follow(process, progress, said)
            except BaseException:
                process.terminate()
                process.wait()
                raise

    @staticmethod
    def _follow(process: subprocess.Popen[bytes], progress: Progress, said: IO[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    raise LabError(message["error"])
                if "up" in message:
                    return
                progress(message["progress"])
        status = process.wait()
        said.seek(0)
        last = (said.read().decode(errors="replace").splitlines() or ["it said nothing"])[-1]
        raise LabError(f"the lab's process ended with {status} before the lab was up: {last}")

    def status(self) -> Message:
        """Return the lab's state; ``{"up": False}`` if it is down.

        Raises:
            LabError: it is booting, or ends meanwhile.
        """
        if not self.held():
            return {"up": False}
        return next(self._ask({"do": "status"}))

    def execute(self, guest: str, argv: list[str], *, terminal: bool = False) -> int:
        """Run a command in a guest with this process's standard streams.

        Args:
            guest: which one.
            argv: the command; it runs in the current directory.
            terminal: whether it gets a terminal, which stands for the one that standard input is.

        Returns:
            Its exit status, negative for a signal.

        Raises:
            CommandStartError: there is no such command, or it cannot be run.
            LabError: the lab is down or ends meanwhile.
        """
        command = {
            "do": "exec",
            "guest": guest,
            "argv": argv,
            "cwd": str(Path.cwd()),
            "env": {"TERM": os.environ.get("TERM", "dumb")} if terminal else {},
            "terminal": window_size() if terminal else None,
        }
        with self._connect() as sock:
            sock.sendall(json.dumps(command).encode() + b"\n")
            return Foreground(sock, terminal=terminal, ended=self._ended).run()

    def down(self) -> bool:
        """Take the lab down and remove what it left; return False if it was not up.

        Raises:
            LabError: it does not go down in time.
        """
        if not self.held():
            with contextlib.suppress(LabError), self.claim():
                pass  # removes what a lab that was killed left
            return False
        for _ in self._ask({"do": "down"}):
            pass
        if not wait_until(lambda: not self.held(), _DOWN_SECONDS):
            raise LabError(f"the lab {self.name!r} did not go down within {_DOWN_SECONDS:g} s")
        return True

    def _ask(self, command: Message) -> Iterator[Message]:
        # A message that is cut off, or a reset, means that the lab has ended.
        with self._connect() as sock, contextlib.suppress(OSError, json.JSONDecodeError):
            sock.sendall(json.dumps(command).encode() + b"\n")
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "error" in message:
                        raise LabError(message["error"])
                    yield message
        if command["do"] != "down":
            raise LabError(self._ended)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self.control))
        except OSError:
            sock.close()
            if self.held():
                raise LabError(f"the lab {self.name!r} is still booting: try again") from None
            raise LabError(self.is_down) from None
        return sock

    @property
    def is_down(self) -> str:
        """The sentence for a person who needs the lab up."""
        return f"the lab {self.name!r} is not up: use {self.command('up')}"

    @property
    def _ended(self) -> str:
        return f"the lab {self.name!r} has ended"

    def command(self, verb: str) -> str:
        """The command, in quotes, that does something with this lab."""
        return f"'stackmap lab {verb}{'' if self.name == 'lab' else f' --name {self.name}'}'"
