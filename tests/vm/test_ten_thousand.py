"""Ten thousand connections on one port, twice over."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stackmap_testbed.lab.guest import Guest

#: With fewer, what caches keep in any case is more than a twentieth.
CONNECTIONS = 10_000
TIMES = 2
#: Part of the connections' memory that the kernel may keep: caches of freed objects.
KEPT = 1 / 20
#: Pages for TCP that each of two processors may have counted and not yet told of.
UNTOLD_PAGES = 2 * 256


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_memory_comes_back(large: Guest) -> None:
    command = ["-m", "tests.guest.ten_thousand", str(CONNECTIONS), str(TIMES)]
    done = large.run([sys.executable, "-B", *command], timeout=1700)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["moment"] for line in told] == ["before", "height", "after"] * TIMES
    start = told[0]
    for height, after in zip(told[1::3], told[2::3], strict=True):
        # Each connection's two sockets, and the listener.
        assert height["TCP alloc"] == 2 * CONNECTIONS + 1
        # Two of each attached socket; the listener's, the port's and the bound NIC's.
        assert height["references"] == 2 * CONNECTIONS + 2 + height["binding"]
        for name in ("references", "TCP alloc", "TCP orphan", "TCP tw"):
            assert after[name] == start[name] == 0, name
        assert after["TCP mem"] <= start["TCP mem"] + UNTOLD_PAGES
        for name, sign in (("MemAvailable", -1), ("SUnreclaim", 1), ("VmallocUsed", 1)):
            taken = sign * (height[name] - start[name])
            kept = sign * (after[name] - start[name])
            assert taken > 0, name
            assert kept <= KEPT * taken, f"{name}: {kept} KiB of {taken} KiB are still in use"
