"""Runs the tests of ``tests/guest/two_cpus`` in a guest that has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stackmap_testbed.lab import Lab
from tests.vm.conftest import BOOT_SECONDS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(900)
def test_inside_two_cpus(kernel: str) -> None:
    with Lab(kernel=kernel, guests=("server",), cpus=2, boot_seconds=BOOT_SECONDS) as lab:
        guest = lab.server
        guest.insmod(ROOT / "build" / "kmod" / lab.release / "stackmap.ko")
        result = guest.run(
            [
                sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                "--timeout", "600", "-x", "--tb=short", str(ROOT / "tests/guest/two_cpus"),
            ],
            timeout=880,
            check=False,
        )  # fmt: skip
        report = result.stdout[-8000:] + result.stderr[-2000:]
        assert result.returncode == 0, report
        assert " skipped" not in result.stdout, report
        guest.run("rmmod stackmap")
        guest.check_kernel_log()
