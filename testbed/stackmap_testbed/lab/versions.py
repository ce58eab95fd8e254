"""Versions that figures depend on, besides this project's own."""

from __future__ import annotations

import platform
import subprocess

import cffi

from stackmap_testbed.lab.errors import LabError


def versions(release: str) -> dict[str, str]:
    """Versions that what a guest with this kernel does depends on, by name.

    Raises:
        LabError: a program cannot be asked for its version.
    """
    return {
        "kernel": release,
        "qemu": qemu_version().split()[0],
        "gcc": _first_line(["gcc", "-dumpfullversion"]),
        "python": platform.python_version(),
        "cffi": cffi.__version__,
    }


def qemu_version() -> str:
    """QEMU's version, with that of its package.

    Raises:
        LabError: it cannot be asked.
    """
    return _first_line(["qemu-system-x86_64", "--version"]).removeprefix("QEMU emulator version ")


def _first_line(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise LabError(f"'{' '.join(command)}' does not say its version: {error}") from error
