"""The checks are there: each bug that is planted is found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.debug.kernels import ROOT
from tests.debug.races import complaints
from tests.debug.uml import Options, run_in_uml

if TYPE_CHECKING:
    from stackmap_testbed.lab.guest import Guest
    from tests.debug.kernels import DebugKernel

SOURCE = Path(__file__).parent / "planted"


def build(kernel: DebugKernel, *options: str) -> Path:
    """The module with the bugs."""
    folder = ROOT / "build" / "planted" / kernel.variant
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    command = ["make", "-s", "-C", str(kernel.directory), *options, f"M={folder}", "modules"]
    subprocess.run(command, check=True)
    return folder / "planted.ko"


@pytest.fixture(scope="module")
def planted(uml: DebugKernel) -> Path:
    """The module for user-mode Linux."""
    return build(uml, "ARCH=um")


@pytest.mark.parametrize(
    ("bug", "complaint"),
    [
        ("use_after_free", "BUG: KASAN: slab-use-after-free"),
        ("keep_a_page", "func:keep_a_page has 4096 allocated at module unload"),
        ("lose_objects", "unreferenced object"),
        ("lock_in_two_orders", "possible circular locking dependency"),
        ("sleep_under_a_spinlock", "sleeping function called from invalid context"),
        ("shift_too_far", "UBSAN: shift-out-of-bounds"),
        ("free_a_running_timer", "ODEBUG: free active"),
        ("delete_from_a_list_twice", "list_del corruption"),
        ("take_a_reference_from_zero", "refcount_t: addition on 0; use-after-free"),
        ("put_a_nic_twice", "ref_tracker: reference already released"),
    ],
)
def test_a_planted_bug_is_found(uml: DebugKernel, planted: Path, bug: str, complaint: str) -> None:
    load = f"/sbin/insmod {planted} bug={bug} && /sbin/rmmod planted"
    report = run_in_uml(uml, ["sh", "-c", load], Options(leaks=bug == "lose_objects", module=False))
    # The kernel does not go on with a list that is not one.
    assert report.status == (None if bug == "delete_from_a_list_twice" else 0), report.output
    assert complaint in "\n".join([report.console, *report.complaints])
    assert not report.good


@pytest.mark.timeout(1200)
def test_a_planted_race_is_found(kcsan: DebugKernel, kcsan_guest: Guest) -> None:
    module = build(kcsan)
    kcsan_guest.mark_kernel_log("race")
    command = f"/sbin/insmod {module} bug=race_with_a_thread && /sbin/rmmod planted"
    kcsan_guest.run(command, timeout=300)
    log = kcsan_guest.kernel_log().split("stackmap: race\n")[-1]
    assert any("BUG: KCSAN: data-race in" in found for found in complaints(log, "planted"))
