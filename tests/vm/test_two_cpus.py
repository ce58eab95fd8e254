"""Runs the tests of ``tests/guest/two_cpus`` in a guest that has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackmap_testbed.lab import Lab
from tests.inside import GuestPytest, reports_folder
from tests.vm.conftest import BOOT_SECONDS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(900)
def test_inside_two_cpus(kernel: str, request: pytest.FixtureRequest) -> None:
    with Lab(kernel=kernel, guests=("server",), cpus=2, boot_seconds=BOOT_SECONDS) as lab:
        guest = lab.server
        guest.insmod(ROOT / "build" / "kmod" / lab.release / "stackmap.ko")
        inside = GuestPytest(guest, reports_folder(request.config))
        inside.passes(ROOT / "tests/guest/two_cpus", timeout=880, patience=600)
        guest.run("rmmod stackmap")
        guest.check_kernel_log()
