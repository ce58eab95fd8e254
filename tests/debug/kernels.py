"""The debug kernels that ``kernel/build.sh`` has built, and the module built for them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from stackmap_testbed.lab.kernels import Kernel, find_kernel

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(__file__).resolve().parent / "kernel" / "build.sh"
SETUP = ROOT / "testbed" / "setup.sh"


class NotBuiltError(Exception):
    """There is no such debug kernel here; the message says what to do."""


@dataclass(frozen=True)
class DebugKernel:
    """One debug kernel: ``uml``, ``smp`` or ``kcsan``."""

    variant: str
    directory: Path

    @property
    def kernel(self) -> Kernel:
        """The kernel as the testbed boots it."""
        return find_kernel(str(self.directory))

    def build_module(self) -> Path:
        """Return stackmap.ko, with its KUnit tests, made from what kmod/ is now.

        Raises:
            subprocess.CalledProcessError: it does not compile without warnings.
        """
        folder = ROOT / "build" / "kmod" / self.kernel.release
        folder.mkdir(parents=True, exist_ok=True)
        options = ["SM_KUNIT=1"] + (["ARCH=um"] if self.variant == "uml" else [])
        command = [str(SETUP), "module-for", str(self.directory), str(folder), *options]
        # Several builds in one folder would spoil each other's.
        subprocess.run(["flock", str(folder), *command], check=True)
        return folder / "stackmap.ko"


def find_debug_kernel(variant: str) -> DebugKernel:
    """Return a debug kernel that has been built.

    Raises:
        NotBuiltError: it has not.
    """
    result = subprocess.run(
        [str(BUILD), "--built", variant], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise NotBuiltError(result.stderr.strip())
    return DebugKernel(variant, Path(result.stdout.strip()))
