"""Runs the tests of ``tests/guest`` where they belong: inside a guest, with the module loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.guest import Guest
    from stackmap_testbed.lab import Lab

ROOT = Path(__file__).parent.parent.parent
INSIDE = ROOT / "tests" / "guest"


@pytest.fixture(scope="module")
def module(vm_lab: Lab) -> Iterator[None]:
    """The module, loaded; that it unloads afterwards is a test of its own."""
    server = vm_lab.server
    server.insmod(ROOT / "build" / "kmod" / vm_lab.release / "stackmap.ko")
    yield
    server.run("rmmod stackmap")


@pytest.mark.usefixtures("module")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", sorted(path.name for path in INSIDE.glob("test_*.py")))
def test_inside(server: Guest, file: str) -> None:
    result = server.run(
        [
            sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "--timeout", "600", "-x", "--tb=short", str(INSIDE / file),
        ],
        timeout=880,
        check=False,
    )  # fmt: skip
    report = result.stdout[-8000:] + result.stderr[-2000:]
    assert result.returncode == 0, report
    assert " passed" in result.stdout, report
    assert " skipped" not in result.stdout, report
