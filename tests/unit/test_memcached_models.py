# ruff: noqa: F401, F811 (tests are imported, fixtures replaced, and parameters named after them)
"""The memcached server as a service and as actors: what the bare loop has to pass as well.

The tests are those of ``test_memcached_conformance.py``, with fewer random conversations.  Not
among them is what only the loop has: where it gives up a line without an end, and how much of a
command it has received, which ``stats conns`` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.memcached.conformance import (
    first_difference,
    missing_programs,
    until_hang_up,
)
from tests.unit.test_memcached_conformance import (
    as_installed,
    read_late,
    serving,
    test_a_client_that_is_refused_can_read_why,
    test_a_large_conversation_in_one_write,
    test_details_by_prefix,
    test_long_lines,
    test_meta_commands,
    test_our_own_report,
    test_reports_have_the_lines_of_memcached,
    test_settings_are_those_of_the_server,
    test_the_binary_protocol_is_refused_as_memcached_refuses_a_command,
    test_the_version_is_one_that_all_clients_can_parse,
    theirs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.memcached.conformance import Address

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
)


@pytest.fixture(scope="module", params=["service", "actors"])
def ours(request: pytest.FixtureRequest) -> Iterator[Address]:
    with serving(request.param) as address:
        yield address


@pytest.mark.parametrize("seed", range(2))
def test_the_same_conversation(ours: Address, theirs: Address, seed: int) -> None:
    assert first_difference(ours, theirs, seed=seed, count=400) is None


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"mn\r\nquit now\r\nmn\r\n"]
)
def test_hanging_up(ours: Address, theirs: Address, data: bytes) -> None:
    assert until_hang_up(ours, data) == until_hang_up(theirs, data)


def test_a_client_that_does_not_read(ours: Address) -> None:
    read_late(ours, 30)
