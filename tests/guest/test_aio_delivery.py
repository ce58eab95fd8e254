"""A delivery does on rings what it does on sockets, tested with the same tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap import Port, RingPort
from tests.guest.wire import NIC
from tests.unit.test_aio_delivery import *  # noqa: F403 (the tests)

if TYPE_CHECKING:
    from collections.abc import Callable

#: One of each kind, for an emulated guest: all of them take minutes there.
IN_EMULATION = {
    f"test_{name}"
    for name in (
        "a_failing_protocol_is_the_only_one_that_ends[plain-TakesBytes]",
        "nothing_is_left_of_deliveries[plain-TakesSegments]",
        "one_that_another_closes_gets_nothing[plain-close-TakesSegments]",
        "one_that_another_gives_a_protocol[plain-TakesSegments-TakesBuffers]",
        "one_that_another_pauses_gets_its_data_later[debug-TakesBuffers]",
        "what_ends_the_program_leaves_the_rest_for_later[plain-SystemExit-TakesBytes]",
        "write_is_a_method_like_others[plain]",
    )
}


@pytest.fixture  # type: ignore[no-redef]
def make_port() -> Callable[[], Port]:
    """Makes ports on rings; smaller ones are opened sooner."""
    return lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256)
