"""The tests of ``tests/guest`` on two processors, under a kernel that looks for data races."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.debug.kernels import ROOT
from tests.debug.races import complaints
from tests.inside import pass_inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.guest import Guest
    from tests.debug.kernels import DebugKernel

GUEST = ROOT / "tests" / "guest"
FILES = [*sorted(GUEST.glob("test_*.py")), *sorted((GUEST / "two_cpus").glob("test_*.py"))]


@pytest.fixture(scope="module")
def server(kcsan: DebugKernel, kcsan_guest: Guest) -> Iterator[Guest]:
    """The guest with the module loaded; nothing may be wrong when it is unloaded."""
    module = kcsan.build_module()
    kcsan_guest.run("modprobe kunit", timeout=300)
    kcsan_guest.mark_kernel_log("load")
    kcsan_guest.insmod(module)
    assert complaints_since(kcsan_guest, "load") == []
    yield kcsan_guest
    kcsan_guest.mark_kernel_log("unload")
    kcsan_guest.run("rmmod stackmap", timeout=300)
    assert complaints_since(kcsan_guest, "unload") == []


def complaints_since(guest: Guest, mark: str) -> list[str]:
    """What the kernel has complained of since a mark was put into its log."""
    return complaints(guest.kernel_log().split(f"stackmap: {mark}\n")[-1])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", [str(path.relative_to(GUEST)) for path in FILES])
def test_guest_suite(server: Guest, file: str) -> None:
    server.mark_kernel_log(file)
    try:
        pass_inside(server, GUEST / file, timeout=1700, patience=900)
    finally:
        assert complaints_since(server, file) == []
