"""Runs the tests of ``tests/guest`` where they belong: inside a guest, with the module loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.inside import GuestPytest

INSIDE = Path(__file__).parent.parent / "guest"
FILES = [
    pytest.param(path.name, marks=pytest.mark.kernel_independent)
    if path.name == "test_examples.py"
    else path.name
    for path in sorted(INSIDE.glob("test_*.py"))
]
ROUNDS = os.environ.get("STACKMAP_ROUNDS", "0")
#: Seconds for a test and for a file of tests: some do more, the more rounds there are.
TEST_SECONDS = 600 * (1 + int(ROUNDS))
FILE_SECONDS = 2300 * (1 + int(ROUNDS))


@pytest.mark.usefixtures("module")
@pytest.mark.timeout(FILE_SECONDS + 100)
@pytest.mark.parametrize("file", FILES)
def test_inside(guest_pytest: GuestPytest, file: str) -> None:
    guest_pytest.passes(INSIDE / file, FILE_SECONDS, TEST_SECONDS, ROUNDS)
