"""Commands of the system that must succeed."""

from __future__ import annotations

import subprocess


def sh(command: str) -> None:
    """Run shell commands of which each must succeed."""
    subprocess.run(["sh", "-ec", command], check=True)


def ip(commands: str, namespace: str | None = None) -> None:
    """Run commands of ip(8), one a line, in this network namespace or another.

    One process runs all of them: starting one takes an emulated machine a third of a second.
    """
    where = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *where, "-batch", "-"], input=commands, text=True, check=True)
