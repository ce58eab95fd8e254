"""``--memory`` bounds the memory of the service and of the actors as well.

The tests are those of ``test_memcached_memory.py``.  Not among them is how long another client has
to wait while a long command is executed, which only the loop interrupts; nor are the loads in which
that takes minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.memcached.pressure import allow_descriptors, peak, press, server
from tests.unit.test_memcached_memory import (
    MOST,
    oldest_line_is_refused,
    test_a_client_whose_value_is_stored_gives_nothing_up,
    test_a_value_larger_than_half_of_the_memory_is_stored,
    test_a_value_that_goes_while_it_is_sent_arrives_whole,
    test_the_oldest_incomplete_value_is_dropped,
    test_the_oldest_slow_readers_are_disconnected,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.memcached.conformance import Address

__all__ = [
    "test_a_client_whose_value_is_stored_gives_nothing_up",
    "test_a_value_larger_than_half_of_the_memory_is_stored",
    "test_a_value_that_goes_while_it_is_sent_arrives_whole",
    "test_the_oldest_incomplete_value_is_dropped",
    "test_the_oldest_slow_readers_are_disconnected",
]


@pytest.fixture(scope="module", params=["service", "actors"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small(model: str) -> Iterator[Address]:
    """A server with room for 8 MB."""
    with server("--backend", "sockets", "--memory", "8", "--model", model) as (address, _pid):
        yield address


@pytest.fixture
def smallest(model: str) -> Iterator[Address]:
    """A server with room for 1 MB."""
    with server("--backend", "sockets", "--memory", "1", "--model", model) as (address, _pid):
        yield address


@pytest.mark.timeout(300)
def test_memory_is_bounded_and_another_client_is_served(model: str) -> None:
    allow_descriptors()
    options = ("--backend", "sockets", "--memory", "64", "--max-connections", "2000")
    with server(*options, "--model", model) as (address, pid):
        for load in ("values-begun", "values-nearly-sent", "lines-unfinished"):
            assert press(address, load).count > 0
            print(f"{model}, {load}: peak {peak(pid) / 1e6:.0f} MB")
        assert peak(pid) < MOST


def test_the_oldest_long_line_is_refused_with_a_reply(smallest: Address) -> None:
    oldest_line_is_refused(smallest, b"get" + b" k" * 150_000)
