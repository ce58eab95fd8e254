"""A short run of the fuzzer; ``make fuzz`` is for longer ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.run import fuzz

if TYPE_CHECKING:
    from tests.debug.kernels import DebugKernel

SECONDS = 45
#: A small part of what a slow machine does in that time.
SLOTS = 1000


@pytest.mark.timeout(900)
def test_a_short_run_finds_nothing(uml: DebugKernel) -> None:
    outcome = fuzz(uml.variant, SECONDS, seed=1)
    said = outcome.output[-4000:]
    assert outcome.failures() == [], said
    assert outcome.shortfalls(SECONDS, SLOTS) == [], said
