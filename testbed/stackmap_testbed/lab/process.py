"""A command running in a guest, and the result of one that has ended."""

from __future__ import annotations

import base64
import codecs
import re
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stackmap_testbed.lab.errors import GuestDiedError, GuestTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stackmap_testbed.lab.channel import Message


@dataclass(frozen=True)
class Completed:
    """How a command in a guest ended; a signal's number is negative, as in ``subprocess``."""

    argv: list[str]
    returncode: int
    stdout: str
    stderr: str


class ProcessOwner(Protocol):
    """The part of a guest that a process uses."""

    def send_signal(self, pid: int, number: int, *, group: bool) -> None:
        """Signal a process, or the whole group it leads."""

    def write_input(self, process: int, data: bytes | None) -> None:
        """Feed a process's standard input; None closes it."""

    def set_window(self, process: int, size: tuple[int, int]) -> None:
        """Set the rows and columns of a process's terminal."""

    def status(self) -> str:
        """Say what the guest last printed on its console."""


class GuestProcess:
    """A command running in a guest; output is collected as it comes."""

    def __init__(self, owner: ProcessOwner, number: int, argv: list[str]) -> None:
        """Stand for the process that the guest's agent knows by ``number``."""
        self._owner = owner
        self._number = number
        self.argv = argv
        self.pid = 0
        self.returncode: int | None = None
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._mixed = ""
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._output
        }
        self._closed = False
        self._guest_died = False
        self._input_waiting = 0
        self._changed = threading.Condition()

    def handle(self, message: Message) -> None:
        """Take in one event about this process (the guest's reader thread calls it)."""
        with self._changed:
            if message["event"] == "output":
                stream = message["stream"]
                data = base64.b64decode(message["data"])
                self._output[stream] += data
                self._mixed += self._decoders[stream].decode(data)
            elif message["event"] == "input":
                self._input_waiting -= message["bytes"]
            elif message["event"] == "exit":
                self.returncode = message["status"]
            elif message["event"] == "closed":
                self._closed = True
            else:
                self._guest_died = True
            self._changed.notify_all()

    @property
    def stdout(self) -> str:
        """Its standard output so far."""
        return self._output["stdout"].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its standard error so far."""
        return self._output["stderr"].decode(errors="replace")

    def output(self) -> str:
        """Return both streams so far, in the order they arrived."""
        return self._mixed

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self.returncode

    def send(self, data: bytes) -> None:
        """Write to its standard input; what it does not read yet waits in the guest."""
        with self._changed:
            self._input_waiting += len(data)
        self._owner.write_input(self._number, data)

    def wait_until_read(self, most: int) -> None:
        """Wait until at most so many bytes of its input wait in the guest, or it has ended."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._input_waiting <= most or self.returncode is not None or self.finished
            )

    def close_input(self) -> None:
        """Let it see the end of its standard input."""
        self._owner.write_input(self._number, None)

    def set_window(self, size: tuple[int, int]) -> None:
        """Set the rows and columns of its terminal."""
        self._owner.set_window(self._number, size)

    def kill(self, number: int = signal.SIGKILL, *, group: bool = False) -> None:
        """Send a signal to it, or with ``group`` to all it started in its session."""
        self._owner.send_signal(self.pid, number, group=group)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended and all it wrote is here; return the exit status.

        A process it left behind may hold its output open: that is waited for
        only briefly.

        Raises:
            GuestTimeoutError: it is still running.
            GuestDiedError: the guest ended first.
        """
        with self._changed:
            self._wait_for(lambda: self.returncode is not None, timeout, "did not end")
            self._changed.wait_for(lambda: self._closed or self._guest_died, 1.0)
            assert self.returncode is not None
            return self.returncode

    def wait_for_output(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Wait until what it wrote matches a regular expression, and return the match.

        Raises:
            GuestTimeoutError: it did not, or it ended without.
            GuestDiedError: the guest ended first.
        """
        expression = re.compile(pattern, re.MULTILINE)
        with self._changed:
            self._wait_for(
                lambda: bool(expression.search(self._mixed)) or self._closed,
                timeout,
                f"did not print {pattern!r}",
            )
            match = expression.search(self._mixed)
        if match is None:
            raise GuestTimeoutError(
                f"{self._title()} ended with {self.returncode} and did not print {pattern!r}: "
                f"{self._tail()}"
            )
        return match

    def next_output(self, seen: dict[str, int], timeout: float) -> dict[str, bytes]:
        """Return what each stream wrote past the lengths in ``seen``, waiting a while for some."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._guest_died or self.unread(seen), timeout
            )
            fresh = {name: bytes(data[seen.get(name, 0) :]) for name, data in self._output.items()}
            for name, data in self._output.items():
                seen[name] = len(data)
            return fresh

    def unread(self, seen: dict[str, int]) -> bool:
        """Whether there is output past the lengths in ``seen``."""
        return any(len(data) > seen.get(name, 0) for name, data in self._output.items())

    @property
    def finished(self) -> bool:
        """Whether no more output will come."""
        return self._closed or self._guest_died

    def _wait_for(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not condition():
            if self._guest_died:
                raise GuestDiedError(f"{self._title()} was cut off: {self._owner.status()}")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise GuestTimeoutError(
                    f"{self._title()} {what} within {timeout:g} s: {self._tail()}"
                )
            self._changed.wait(left)

    def _title(self) -> str:
        return f"'{' '.join(self.argv)[:120]}' in the guest"

    def _tail(self) -> str:
        return f"it had printed {self._mixed[-800:]!r}" if self._mixed else "it had printed nothing"
