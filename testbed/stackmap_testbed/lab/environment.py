"""The parts of this process's environment that guests need: Python, packages and settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stackmap_testbed.lab.checkout import CHECKOUT

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INHERITED = ("LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TERM")


def guest_python() -> str:
    """Return the interpreter of the caller, which has the same path in a guest."""
    return sys.executable


def guest_environment() -> dict[str, str]:
    """Return the environment of commands in a guest: the caller's Python, a home in /tmp."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}:{_SYSTEM_PATH}",
        "HOME": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def visible_paths() -> list[Path]:
    """Return the places a guest must see even if they are below one of its writable directories."""
    wanted = [
        CHECKOUT,
        Path.cwd(),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.executable).resolve().parent,
    ]
    wanted += [Path(entry) for entry in sys.path if entry]
    return sorted({path.resolve() for path in wanted if path.is_dir()})
