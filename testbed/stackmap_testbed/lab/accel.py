"""Choose hardware virtualisation or emulation by trying, once per boot of this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stackmap_testbed.lab.initramfs import PROBE_MARKER, build_probe_initramfs
from stackmap_testbed.lab.qemu import machine_arguments
from stackmap_testbed.lab.runtime_dir import runtime_directory

if TYPE_CHECKING:
    from stackmap_testbed.lab.kernels import Kernel

_DEADLINE_SECONDS = 10.0
_MEMORY_MB = 256


def choose_accel(kernel: Kernel) -> str:
    """Return ``kvm`` if this stock kernel really boots under it here, otherwise ``tcg``.

    That /dev/kvm exists and opens proves nothing: nested or filtered
    virtualisation may fail only once the kernel runs.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cache = runtime_directory() / f"accel-{boot}-{kernel.release}"
    try:
        return cache.read_text()
    except FileNotFoundError:
        answer = "kvm" if _boots_under_kvm(kernel) else "tcg"
        cache.write_text(answer)
        return answer


def _boots_under_kvm(kernel: Kernel) -> bool:
    with tempfile.TemporaryDirectory(prefix="stackmap-probe-") as name:
        directory = Path(name)
        initramfs = directory / "initramfs"
        initramfs.write_bytes(build_probe_initramfs())
        console = directory / "console"
        command = machine_arguments("kvm", kernel, initramfs, console, _MEMORY_MB)
        command += ["-append", "console=ttyS0 quiet panic=-1"]
        try:
            subprocess.run(command, capture_output=True, timeout=_DEADLINE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False
        return console.exists() and PROBE_MARKER in console.read_text(errors="replace")
