"""The tests of ``tests/guest`` on two processors, under a kernel that looks for data races.

Linux has races of its own, and KCSAN finds some: what counts is those with the module in them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.errors import LabError
from stackmap_testbed.kernel_log import offending_lines
from stackmap_testbed.lab import Lab
from tests.debug.kernels import ROOT, NotBuiltError, find_debug_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.guest import Guest

GUEST = ROOT / "tests" / "guest"
RULE = "=" * 66
RACE = "BUG: KCSAN:"
BOOT_SECONDS = 600.0


@pytest.fixture(scope="module")
def server() -> Iterator[Guest]:
    """A guest of two processors with the module loaded."""
    try:
        kernel = find_debug_kernel("kcsan")
        lab = Lab(
            kernel=str(kernel.directory), guests=("server",), cpus=2, boot_seconds=BOOT_SECONDS
        )
    except (NotBuiltError, LabError) as reason:
        pytest.skip(str(reason))
    module = kernel.build_module()
    with lab:
        lab.server.run("modprobe kunit")
        lab.server.insmod(module)
        yield lab.server
        lab.server.run("rmmod stackmap")


def complaints(log: str) -> list[str]:
    """Races that the module takes part in, and whatever else the kernel complains of."""
    found = []
    for section in log.split(RULE):
        if RACE not in section:
            found += offending_lines(section.splitlines())
        elif "[stackmap]" in section:
            found.append(section)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", sorted(path.name for path in GUEST.glob("test_*.py")))
def test_guest_suite(server: Guest, file: str) -> None:
    server.mark_kernel_log(file)
    result = server.run(
        [
            sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "--timeout", "900", "-x", "--tb=short", str(GUEST / file),
        ],
        timeout=1700,
        check=False,
    )  # fmt: skip
    report = result.stdout[-8000:] + result.stderr[-2000:]
    assert complaints(server.kernel_log().split(f"stackmap: {file}")[-1]) == []
    assert result.returncode == 0, report
    assert " passed" in result.stdout, report
    assert " skipped" not in result.stdout, report
