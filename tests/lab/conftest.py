"""Two guests for all tests of this folder, and a look into their kernel logs after each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.errors import GuestDiedError, KernelLogError, LabError
from stackmap_testbed.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def lab(kernel: str) -> Iterator[Lab]:
    """Two hosts with a wire that can be impaired and captured."""
    try:
        described = Lab(kernel=kernel, wire="relay")
    except LabError as reason:
        pytest.skip(str(reason))
    with described:
        yield described


@pytest.fixture(autouse=True)
def clean_lab(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that made a kernel complain, and give the next one a clean wire."""
    for guest in lab.guests.values():
        guest.mark_kernel_log(request.node.nodeid)
    yield
    lab.wire.clear()
    lab.wire.stop_capture()
    complaints = []
    for guest in lab.guests.values():
        try:
            guest.check_kernel_log()
        except (KernelLogError, GuestDiedError) as complaint:
            complaints.append(str(complaint))
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)
