"""CPython's own tests of asyncio pass on the loop of this package, over sockets."""

from __future__ import annotations

import pytest

from stackmap import SocketPort
from stackmap.aio import loop_factory
from tests import cpython_asyncio
from tests.cpython_asyncio import *  # noqa: F403 (the tests)

pytestmark = pytest.mark.filterwarnings("default")
cpython_asyncio.use(loop_factory(SocketPort))
