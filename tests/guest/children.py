"""A process of its own for what may never come back: it is waited for, not joined."""

from __future__ import annotations

import os
import signal
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30.0


class Child:
    """A forked process that does some work.  It has no mapping of ports that are open already.

    The work is given a function that tells the parent that it has come to what matters.
    """

    def __init__(self, work: Callable[[Callable[[], object]], None]) -> None:
        self._reading, writing = os.pipe()
        self.status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                work(partial(os.write, writing, b"x"))
                code = 0
            except BaseException:  # noqa: BLE001 (nothing may get back into the parent's stack)
                traceback.print_exc()
            os._exit(code)
        os.close(writing)

    def await_word(self) -> None:
        """Wait until the child tells that it has come to what matters."""
        assert os.read(self._reading, 1) == b"x", "the child ended before"

    def await_sleep(self, states: str = "S") -> None:
        """Wait until the child sleeps; other states (proc(5)) may be meant."""
        eventually(
            lambda: self._state() in states, lambda: "the child never sleeps", patience=PATIENCE
        )

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def await_end(self) -> int:
        """Wait until the child has ended; returns its exit status, negative for a signal."""
        eventually(self._ended, lambda: "the child does not end", patience=PATIENCE)
        assert self.status is not None
        return self.status

    def _ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._ended():
            os.kill(self.pid, signal.SIGKILL)
            self.await_end()
        os.close(self._reading)
