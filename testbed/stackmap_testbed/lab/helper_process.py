"""Start helper processes that cannot outlive the lab, and end them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

from stackmap_testbed.lab.errors import MissingToolError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def start_process(
    command: Sequence[str], log: Path, descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a helper that dies with the thread that started it, even if that is killed.

    It has a session of its own, so that Ctrl-C reaches only the lab, which then
    ends its helpers in order.  What it says goes to ``log``.

    Raises:
        MissingToolError: setpriv or the program is not installed.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise MissingToolError(
            "setpriv is not installed: install it with 'apt-get install util-linux'"
        )
    with log.open("ab") as output:
        return subprocess.Popen(
            [setpriv, "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            start_new_session=True,
        )


def end_process(process: subprocess.Popen[bytes], grace: float = 2.0) -> None:
    """End a helper and whatever it started, kindly at first."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself meanwhile
        os.killpg(process.pid, number)
