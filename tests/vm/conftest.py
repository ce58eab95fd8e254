"""One guest for all tests of this folder, and a look into its kernel log after each."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.lab.errors import GuestDiedError, KernelLogError, LabError
from stackmap_testbed.lab.lab import Lab
from tests.inside import NO_MITIGATIONS, GuestPytest, reports_folder, rewrite_assertions
from tests.unload import UNLOAD, UNLOAD_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.lab.guest import Guest

ROOT = Path(__file__).resolve().parents[2]

#: A kernel full of checks takes minutes where the machine is emulated and busy.
BOOT_SECONDS = 600.0


@pytest.fixture(scope="session")
def vm_lab(kernel: str, cpus: int) -> Iterator[Lab]:
    """A lab with only the server in it."""
    try:
        lab = Lab(
            kernel=kernel,
            guests=("server",),
            cpus=cpus,
            boot_seconds=BOOT_SECONDS,
            command_line=NO_MITIGATIONS,
        )
    except LabError as reason:
        pytest.skip(str(reason))
    with lab:
        yield lab


@pytest.fixture(scope="session")
def large_lab(kernel: str) -> Iterator[Lab]:
    """A lab with a server of two processors and 2 GB, for the few tests that need either."""
    try:
        lab = Lab(
            kernel=kernel,
            guests=("server",),
            cpus=2,
            memory=2048,
            boot_seconds=BOOT_SECONDS,
            command_line=NO_MITIGATIONS,
        )
    except LabError as reason:
        pytest.skip(str(reason))
    with lab:
        yield lab


@pytest.fixture(scope="session")
def server(vm_lab: Lab) -> Guest:
    """The guest."""
    return vm_lab.server


@pytest.fixture(scope="session")
def guest_pytest(server: Guest, request: pytest.FixtureRequest) -> GuestPytest:
    """pytest in there."""
    rewrite_assertions(ROOT / "tests" / "guest")
    return GuestPytest(server, reports_folder(request.config))


@contextlib.contextmanager
def loaded(lab: Lab) -> Iterator[None]:
    """The module, loaded in a lab's server; that it unloads afterwards is a test of its own."""
    server = lab.server
    server.insmod(ROOT / "build" / "kmod" / lab.release / "stackmap.ko")
    yield
    server.mark_kernel_log("unload")
    server.run(UNLOAD, timeout=UNLOAD_SECONDS)
    # A kernel that counts allocations says here what the module has left.
    server.check_kernel_log()


@pytest.fixture(scope="module")
def module(vm_lab: Lab) -> Iterator[None]:
    """The module, loaded in the guest of this folder."""
    with loaded(vm_lab):
        yield


@pytest.fixture(scope="module")
def large(large_lab: Lab) -> Iterator[Guest]:
    """The guest of two processors and 2 GB, with the module loaded."""
    with loaded(large_lab):
        yield large_lab.server


@pytest.fixture(autouse=True)
def clean_kernel_log(server: Guest, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that made the kernel complain."""
    server.mark_kernel_log(request.node.nodeid)
    yield
    try:
        server.check_kernel_log()
    except (KernelLogError, GuestDiedError) as complaint:
        pytest.fail(str(complaint), pytrace=False)
