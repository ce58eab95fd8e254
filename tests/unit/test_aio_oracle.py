"""Programs that hypothesis makes up: the transport does what the standard library's does.

``STACKMAP_EXAMPLES`` says how many; ``make test-long`` runs ten thousand.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackmap import SocketPort
from stackmap.aio import loop_factory
from tests.aio_oracle import OPERATIONS, SIZE_MAX, Operation, compare

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = int(os.environ.get("STACKMAP_EXAMPLES", "100"))

operations = st.tuples(
    st.sampled_from(OPERATIONS), st.sampled_from((0, 1, 600, 5000)) | st.integers(0, SIZE_MAX)
)


@pytest.fixture(scope="module")
def runners() -> Iterator[tuple[asyncio.Runner, asyncio.Runner]]:
    with (
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as oracle,
        asyncio.Runner(loop_factory=loop_factory(SocketPort)) as subject,
    ):
        yield oracle, subject


@pytest.mark.timeout(60 + EXAMPLES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(program=st.lists(operations, max_size=12))
def test_they_do_the_same(
    runners: tuple[asyncio.Runner, asyncio.Runner], program: list[Operation]
) -> None:
    compare(*runners, [program])
