"""CPython's own tests of asyncio pass on the loop of this package, over rings.

An emulated guest would take many minutes for all of them.  Without ``STACKMAP_ROUNDS`` it runs
those in which transports carry bytes both ways: with flow control, TLS, files, and protocols with
buffers.  The others are about files, signals and TLS itself, which know nothing of rings, or about
what ``test_aio_loop`` and ``test_aio_transport`` test here too.
"""

from __future__ import annotations

import os

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from tests import cpython_asyncio
from tests.cpython_asyncio import (
    TestBufferedProtocol,  # noqa: F401 (the tests)
    TestSendfile,  # noqa: F401
    TestServer,  # noqa: F401
    collections_are_cheap,  # noqa: F401
    transports_were_on_the_port,  # noqa: F401
)
from tests.guest.wire import NIC

if int(os.environ.get("STACKMAP_ROUNDS", "0")):
    from tests.cpython_asyncio import *  # noqa: F403

pytestmark = pytest.mark.filterwarnings("default")
cpython_asyncio.use(loop_factory(lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256)))
