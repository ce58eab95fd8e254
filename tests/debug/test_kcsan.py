"""Tests of ``tests/guest`` on two processors, under a kernel that looks for data races.

Emulated, a file of them takes minutes, and most have one thread that waits for all it causes.
These have more to do at a time; what meets at random is the fuzzer's (``make fuzz KERNEL=kcsan``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.debug.kernels import ROOT
from tests.debug.races import complaints
from tests.inside import GuestPytest
from tests.unload import UNLOAD, UNLOAD_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.lab.guest import Guest
    from tests.debug.kernels import DebugKernel

GUEST = ROOT / "tests" / "guest"
FILES = [
    *("test_contract.py", "test_listener.py", "test_pairs.py", "test_poll.py", "test_wait.py"),
    *sorted(str(path.relative_to(GUEST)) for path in (GUEST / "two_cpus").glob("test_*.py")),
]


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
    kcsan_guest.run(UNLOAD, timeout=UNLOAD_SECONDS)
    assert complaints_since(kcsan_guest, "unload") == []


@pytest.fixture(scope="module")
def guest_pytest(server: Guest) -> GuestPytest:
    """pytest in there."""
    return GuestPytest(server)


def complaints_since(guest: Guest, mark: str) -> list[str]:
    """The kernel's complaints since a mark was put into its log."""
    return complaints(guest.kernel_log().split(f"stackmap: {mark}\n")[-1])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", FILES)
def test_guest_suite(server: Guest, guest_pytest: GuestPytest, file: str) -> None:
    server.mark_kernel_log(file)
    try:
        guest_pytest.passes(GUEST / file, timeout=1700, patience=900)
    finally:
        assert complaints_since(server, file) == []
