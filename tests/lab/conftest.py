"""Two guests for all tests of this folder, and a look into their kernel logs after each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.comparison.experiment import program
from stackmap_testbed.lab.errors import GuestDiedError, KernelLogError, LabError
from stackmap_testbed.lab.kernels import module_for
from stackmap_testbed.lab.lab import Lab
from tests.inside import NO_MITIGATIONS
from tests.unload import UNLOAD, UNLOAD_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def lab(kernel: str) -> Iterator[Lab]:
    """Two hosts with a wire that can be impaired and captured."""
    try:
        described = Lab(
            kernel=kernel, wire="relay", boot_seconds=600.0, command_line=NO_MITIGATIONS
        )
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


@pytest.fixture(scope="module")
def rings(lab: Lab) -> Iterator[None]:
    """The module loaded on the server and its NIC bound; both undone at the end."""
    server = lab.server
    server.mark_kernel_log("bind")
    bind = [program("stackmap"), "bind", "eth0", "--module", str(module_for(lab.release))]
    assert "eth0 is bound" in server.run(bind).stdout
    assert "qdisc stackmap" in server.run("tc qdisc show dev eth0").stdout
    yield
    server.mark_kernel_log("unbind and unload")
    server.run([program("stackmap"), "unbind", "eth0"])
    assert "stackmap" not in server.run("tc qdisc show dev eth0").stdout
    server.run(UNLOAD, timeout=UNLOAD_SECONDS)
    server.check_kernel_log()
