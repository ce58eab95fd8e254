"""Programs made up at random: the transport on rings does what the standard library's does."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from tests.aio_oracle import compare, random_program
from tests.guest.wire import NIC

EXAMPLES = int(os.environ.get("STACKMAP_EXAMPLES", "40"))


@pytest.mark.timeout(600 + EXAMPLES)
@pytest.mark.parametrize("seed", [1, 2])
def test_they_do_the_same(seed: int) -> None:
    source = random.Random(seed)
    programs = [random_program(source) for _ in range(EXAMPLES)]
    with (
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as oracle,
        asyncio.Runner(
            loop_factory=loop_factory(lambda: RingPort(NIC, tx_slots=64, rx_slots=64))
        ) as subject,
    ):
        compare(oracle, subject, programs)
