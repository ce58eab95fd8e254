"""What machine an experiment ran on, for its report."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path


def describe_machine() -> dict[str, str | float]:
    """Name the things that numbers depend on."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    qemu = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return {
        "processor": cpu.group(1) if cpu else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory / 2**30),
        "qemu": qemu.removeprefix("QEMU emulator version "),
        "python": platform.python_version(),
        "load_average_at_start": round(os.getloadavg()[0], 1),
    }
