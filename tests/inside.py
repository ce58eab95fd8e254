"""Run a file of tests with pytest inside a guest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from stackmap_testbed.guest import Guest


def pytest_command(tests: Path, *options: str) -> list[str]:
    """Returns a command for a guest, whose view of this tree is read-only.

    It is spared Hypothesis' plugin, which no test there uses, and which takes an emulated machine a
    quarter of a minute to load.
    """
    return [
        sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-p", "no:hypothesispytest", "-x", "--tb=short", *options, str(tests),
    ]  # fmt: skip


def check_report(output: str) -> None:
    """Fail unless tests passed and none was skipped."""
    assert " passed" in output, output
    assert " skipped" not in output, output


def pass_inside(
    guest: Guest, tests: Path, timeout: float, patience: int, rounds: str = "0"
) -> None:
    """Have a guest pass tests: all within ``timeout`` seconds, and each within ``patience``."""
    result = guest.run(
        pytest_command(tests, "--timeout", str(patience)),
        timeout=timeout,
        env={"STACKMAP_ROUNDS": rounds},
        check=False,
    )
    report = result.stdout[-8000:] + result.stderr[-2000:]
    assert result.returncode == 0, report
    check_report(result.stdout)
