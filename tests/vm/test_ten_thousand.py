"""Ten thousand connections on one port, in a guest of 2 GB, three times over."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.errors import LabError
from stackmap_testbed.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 10_000
TIMES = 3
#: What the kernel may keep of what the connections took: caches of freed objects.
KEPT = 1 / 20
#: Pages for TCP that each processor may have counted and not yet told of.
UNTOLD_PAGES = 256


@pytest.fixture(scope="module")
def large(kernel: str) -> Iterator[Lab]:
    """A lab of one guest of its own, with the module loaded."""
    try:
        lab = Lab(kernel=kernel, guests=("server",), memory=2048)
    except LabError as reason:
        pytest.skip(str(reason))
    with lab:
        lab.server.insmod(ROOT / "build" / "kmod" / lab.release / "stackmap.ko")
        yield lab
        lab.server.run("rmmod stackmap")
        lab.server.check_kernel_log()


@pytest.mark.timeout(1800)
def test_memory_comes_back(large: Lab) -> None:
    command = ["-m", "tests.guest.crowd", str(CONNECTIONS), str(TIMES)]
    done = large.server.run([sys.executable, "-B", *command], timeout=1700)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["moment"] for line in told] == ["before", "height", "after"] * TIMES
    start = told[0]
    for height, after in zip(told[1::3], told[2::3], strict=True):
        # Each connection's two sockets and the listener; the bound NIC and the open port.
        assert height["TCP alloc"] == 2 * CONNECTIONS + 1
        assert height["references"] == CONNECTIONS + 3
        for name in ("references", "TCP alloc", "TCP orphan", "TCP tw"):
            assert after[name] == start[name] == 0, name
        assert after["TCP mem"] <= start["TCP mem"] + UNTOLD_PAGES
        for name, sign in (("MemAvailable", -1), ("SUnreclaim", 1), ("VmallocUsed", 1)):
            taken = sign * (height[name] - start[name])
            kept = sign * (after[name] - start[name])
            assert taken > 0, name
            assert kept <= KEPT * taken, f"{name}: {kept} KiB of {taken} KiB are still in use"
