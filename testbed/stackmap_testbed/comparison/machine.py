"""Describe the machine and the versions of an experiment, for its report."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from pathlib import Path

from stackmap_testbed.lab.checkout import CHECKOUT
from stackmap_testbed.lab.versions import qemu_version

UNKNOWN = "unknown"


def describe_machine() -> dict[str, str | float]:
    """Name the things that numbers depend on.

    Raises:
        LabError: QEMU cannot be asked for its version.
    """
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(sep=" ", timespec="seconds"),
        "commit": describe_commit(CHECKOUT),
        "processor": cpu.group(1) if cpu else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory / 2**30),
        "qemu": qemu_version(),
        "python": platform.python_version(),
        "load_average_at_start": round(os.getloadavg()[0], 1),
    }


def describe_commit(project: Path) -> str:
    """Name the commit of a checkout, with ``-dirty`` if it was changed since.

    An installed package is in no checkout, though it may be in a folder of somebody else's.
    """
    git = ["git", "-C", str(project)]
    try:
        top = _output([*git, "rev-parse", "--show-toplevel"])
        if Path(top).resolve() != project.resolve():
            return UNKNOWN
        return _output([*git, "describe", "--always", "--dirty", "--abbrev=12"])
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
