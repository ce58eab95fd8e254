"""Services and actors speak TLS on rings, tested with the same tests as on other loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from tests.guest.wire import NIC
from tests.unit.test_tls import *  # noqa: F403 (the tests, and the fixtures they share)

if TYPE_CHECKING:
    from tests.unit.test_tls import NewLoop


@pytest.fixture  # type: ignore[no-redef]
def new_loop() -> NewLoop:
    """Makes loops whose connections are on rings; smaller ports are opened sooner."""
    return loop_factory(lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256))
