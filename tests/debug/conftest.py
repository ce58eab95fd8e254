"""The debug kernels that tests boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.lab import Lab
from tests.debug.kernels import DebugKernel, NotBuiltError, find_debug_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.lab.guest import Guest

#: Tests that run inside guests only, named there file by file.
collect_ignore = ["inside"]

BOOT_SECONDS = 600.0


@pytest.fixture(scope="session")
def uml() -> DebugKernel:
    """The user-mode Linux kernel."""
    return built("uml")


@pytest.fixture(scope="session")
def kcsan() -> DebugKernel:
    """The kernel that finds data races."""
    return built("kcsan")


@pytest.fixture(scope="session")
def kcsan_guest(kcsan: DebugKernel) -> Iterator[Guest]:
    """A guest of two processors with that kernel."""
    try:
        lab = Lab(
            kernel=str(kcsan.directory), guests=("server",), cpus=2, boot_seconds=BOOT_SECONDS
        )
    except LabError as reason:
        pytest.skip(str(reason))
    with lab:
        yield lab.server


def built(variant: str) -> DebugKernel:
    """A debug kernel; without it the test is skipped."""
    try:
        return find_debug_kernel(variant)
    except NotBuiltError as reason:
        pytest.skip(str(reason))
