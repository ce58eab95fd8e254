"""A delivery does on rings what it does on sockets, tested with the same tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap import Port, RingPort
from tests.guest.wire import NIC
from tests.unit.test_aio_delivery import *  # noqa: F403 (the tests)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture  # type: ignore[no-redef]
def make_port() -> Callable[[], Port]:
    """Makes ports on rings; smaller ones are opened sooner."""
    return lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256)
