"""The transport does on rings what it does on sockets, tested with the same tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from tests.guest.wire import NIC
from tests.unit.test_aio_transport import *  # noqa: F403 (the tests)

if TYPE_CHECKING:
    from tests.unit.test_aio_transport import NewLoop


@pytest.fixture  # type: ignore[no-redef]
def new_loop() -> NewLoop:
    """Makes loops whose connections are on rings; smaller ports are opened sooner."""
    return loop_factory(lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256))
