"""The checks are there: each bug that is planted is found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.debug.kernels import ROOT
from tests.debug.uml import Options, run_in_uml

if TYPE_CHECKING:
    from tests.debug.kernels import DebugKernel

SOURCE = Path(__file__).parent / "planted"


@pytest.fixture(scope="module")
def planted(uml: DebugKernel) -> Path:
    """The module with the bugs."""
    folder = ROOT / "build" / "planted"
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    subprocess.run(
        ["make", "-s", "-C", uml.directory, "ARCH=um", f"M={folder}", "modules"], check=True
    )
    return folder / "planted.ko"


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
    ],
)
def test_a_planted_bug_is_found(uml: DebugKernel, planted: Path, bug: str, complaint: str) -> None:
    load = f"/sbin/insmod {planted} bug={bug} && /sbin/rmmod planted"
    report = run_in_uml(uml, ["sh", "-c", load], Options(leaks=bug == "lose_objects", module=False))
    assert report.status == 0, report.output
    assert complaint in "\n".join([report.console, *report.complaints])
    assert not report.good
