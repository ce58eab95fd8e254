"""The echo server in C does on rings what it does on epoll, tested with the same tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guest.wire import ADDRESS, NIC, in_peer_namespace
from tests.unit.test_echo_c import *  # noqa: F403 (the tests)
from tests.unit.test_echo_c import PATIENCE, started, stop

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module", params=["1", "2"], ids=["one", "threads"])  # type: ignore[no-redef]
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[], socket.socket]]:
    """Connects to a server from the other end of the wire."""
    process, port = started(ADDRESS, NIC, "--threads", request.param)

    def connect() -> socket.socket:
        peer = in_peer_namespace()
        peer.settimeout(PATIENCE)
        peer.connect((ADDRESS, port))
        return peer

    yield connect
    stop(process)
