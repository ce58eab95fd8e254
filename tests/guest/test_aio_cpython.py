"""CPython's own tests of asyncio pass on the loop of this package, over rings."""

from __future__ import annotations

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from tests import cpython_asyncio
from tests.cpython_asyncio import *  # noqa: F403 (the tests)
from tests.guest.wire import NIC

pytestmark = pytest.mark.filterwarnings("default")
cpython_asyncio.use(loop_factory(lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256)))
