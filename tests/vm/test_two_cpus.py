"""Runs the tests of ``tests/guest/two_cpus`` in a guest that has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.inside import GuestPytest, reports_folder

if TYPE_CHECKING:
    from stackmap_testbed.lab.guest import Guest

TESTS = Path(__file__).parent.parent / "guest" / "two_cpus"


@pytest.mark.concurrent
@pytest.mark.first_kernel
@pytest.mark.timeout(900)
def test_inside_two_cpus(large: Guest, request: pytest.FixtureRequest) -> None:
    inside = GuestPytest(large, reports_folder(request.config))
    inside.passes(TESTS, timeout=880, patience=600)
