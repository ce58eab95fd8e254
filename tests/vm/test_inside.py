"""Runs the tests of ``tests/guest`` where they belong: inside a guest, with the module loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.inside import GuestPytest

INSIDE = Path(__file__).parent.parent / "guest"
#: Files that have several things going on at a time.
CONCURRENT = {
    f"test_{name}.py"
    for name in (
        "contract", "detach", "direct", "direct_rx", "ends", "hostile", "kill", "lifetimes",
        "listener", "netlink", "overload", "pairs", "poll", "queues", "rights", "small_slots",
        "spin", "wait",
    )
}  # fmt: skip


#: Files about parts of the module that the differences in ``kmod/compat.h`` do not touch.
FIRST_KERNEL = {
    f"test_{name}.py"
    for name in (
        "actor", "aio_clients", "aio_cpython", "aio_delivery", "aio_loop", "aio_oracle",
        "aio_transport", "conformance", "congestion", "echo_c", "examples", "fast_path", "forward",
        "kill", "lent", "lifetimes", "limits", "memcached_ends", "netlink", "overload", "poll",
        "register", "reuseport", "rights", "ring_port", "security", "servers", "signals",
        "soft_errors", "spin", "tcp_state", "tls", "tracepoints", "transport_contract",
    )
}  # fmt: skip


def marks(file: str) -> list[pytest.MarkDecorator]:
    """The markers of a file's test."""
    found = []
    if file in CONCURRENT:
        found.append(pytest.mark.concurrent)
    if file in FIRST_KERNEL:
        found.append(pytest.mark.first_kernel)
    return found


#: Files that have the marker "long" on some tests; ``tests/guest/conftest.py`` says how.
LONG = sorted(
    path.name
    for path in INSIDE.glob("test_*.py")
    if re.search(r"mark\.long|^IN_EMULATION", path.read_text(), re.MULTILINE)
)

FILES = [
    pytest.param(path.name, marks=marks(path.name)) for path in sorted(INSIDE.glob("test_*.py"))
]
ROUNDS = os.environ.get("STACKMAP_ROUNDS", "0")
#: Seconds for a test and for a file of tests: some do more, the more rounds there are.
TEST_SECONDS = 600 * (1 + int(ROUNDS))
FILE_SECONDS = 2300 * (1 + int(ROUNDS))


@pytest.mark.usefixtures("module")
@pytest.mark.timeout(FILE_SECONDS + 100)
@pytest.mark.parametrize("file", FILES)
def test_inside(guest_pytest: GuestPytest, file: str) -> None:
    guest_pytest.passes(INSIDE / file, FILE_SECONDS, TEST_SECONDS, ROUNDS, "not long")


@pytest.mark.long
@pytest.mark.usefixtures("module")
@pytest.mark.timeout(FILE_SECONDS + 100)
@pytest.mark.parametrize("file", LONG)
def test_what_is_long(guest_pytest: GuestPytest, file: str) -> None:
    guest_pytest.passes(INSIDE / file, FILE_SECONDS, TEST_SECONDS, ROUNDS, "long")
