"""A guest runs the kernel that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackmap_testbed.lab.guest import Guest
    from stackmap_testbed.lab.lab import Lab


def test_it_runs_the_kernel_that_was_asked_for(server: Guest, vm_lab: Lab, kernel: str) -> None:
    release = server.run("uname -r").stdout.strip()
    assert release == vm_lab.release
    of_directory = Path(kernel) / "lib" / "modules" / release
    assert release.startswith(f"{kernel}.") or release == kernel or of_directory.is_dir()
