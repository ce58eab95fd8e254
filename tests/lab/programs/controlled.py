"""Shared by the two programs that tests drive by hand: read commands, and write answers.

A command is a line of JSON, ``{"do": NAME, ...}``; its answer is a line ``=N JSON``,
the first N being 1.
"""

from __future__ import annotations

import json
import os
from typing import Any


class Commands:
    """Reads commands from standard input, and has methods ``do_NAME`` of an object obey them."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._pending = b""
        self._lines: list[bytes] = []
        self._answers = 0

    def fileno(self) -> int:
        return 0

    def read(self) -> None:
        """Take in what has come, or wait for something."""
        data = os.read(0, 65536)
        if not data:
            raise EOFError("the test has gone")
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._lines += lines

    def obey(self) -> None:
        """Do what was asked."""
        lines, self._lines = self._lines, []
        for line in lines:
            command: dict[str, Any] = json.loads(line)
            answer = getattr(self._owner, "do_" + command.pop("do"))(**command)
            self._answers += 1
            print(f"={self._answers}", json.dumps(answer), flush=True)
