"""Sockets of SMC, which Debian's kernels have and user-mode Linux has not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stackmap_testbed.guest import Guest

PROGRAM = Path(__file__).parent.parent / "guest" / "smc.py"


@pytest.mark.usefixtures("module")
@pytest.mark.timeout(600)
def test_sockets_of_smc(server: Guest) -> None:
    """They are refused, whatever they have become, and go on as before."""
    result = server.run(
        [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PROGRAM)],
        timeout=550,
        check=False,
    )
    report = result.stdout[-8000:] + result.stderr[-2000:]
    assert result.returncode == 0, report
    assert " passed" in result.stdout, report
    assert " skipped" not in result.stdout, report
