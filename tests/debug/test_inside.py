"""Tests inside user-mode Linux: those of ``tests/guest``, and those for this kernel only.

After each file the module is unloaded, and nothing of it may be left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.debug.kernels import ROOT
from tests.debug.uml import Options, run_in_uml
from tests.inside import check_report, pytest_command

if TYPE_CHECKING:
    from pathlib import Path

    from tests.debug.kernels import DebugKernel

GUEST = ROOT / "tests" / "guest"
INSIDE = ROOT / "tests" / "debug" / "inside"
#: Files of which emulated guests run a selection, and this kernel all.
SELECTED_ELSEWHERE = {"test_aio_cpython.py"}


def run_tests(uml: DebugKernel, file: Path, options: Options, patience: int) -> None:
    """Run a file of tests in a guest; ``patience`` is one test's, in the guest's seconds."""
    limits = ("--timeout", str(patience), "-o", f"faulthandler_timeout={patience}")
    command = pytest_command(file, *limits)
    if file.name in SELECTED_ELSEWHERE:
        command = ["env", "STACKMAP_ROUNDS=1", *command]
    report = run_in_uml(uml, command, options)
    report.check()
    check_report(report.output)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("file", sorted(path.name for path in GUEST.glob("test_*.py")))
def test_guest_suite(uml: DebugKernel, file: str) -> None:
    run_tests(uml, GUEST / file, Options(leaks=True, timeout=1400), 600)


@pytest.mark.timeout(1500)
def test_faults(uml: DebugKernel) -> None:
    run_tests(uml, INSIDE / "test_faults.py", Options(leaks=True, timeout=1400), 600)


@pytest.mark.timeout(1500)
def test_memcached_memory(uml: DebugKernel) -> None:
    """An emulated guest would take longer than a test may."""
    run_tests(uml, INSIDE / "test_memcached_memory.py", Options(leaks=True, timeout=1400), 600)


@pytest.mark.timeout(700)
def test_simulated_time(uml: DebugKernel) -> None:
    """Here a test that hangs is noticed by this machine's clock only."""
    run_tests(uml, INSIDE / "test_time.py", Options(leaks=True, time_travel=True), 0)
