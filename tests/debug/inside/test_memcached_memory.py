"""The memcached server on rings: its memory is bounded, and nobody keeps the others waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guest.wire import ADDRESS, NIC, peer_namespace
from tests.unit.test_memcached_memory import (  # noqa: F401 (the test, and a fixture of it)
    pressed,
    test_memory_is_bounded_and_another_client_is_served,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def backend() -> tuple[str, ...]:
    """The server's options that choose the backend under test."""
    return ("--backend", "stackmap", "--nic", NIC, "--listen", f"{ADDRESS}:0")


@pytest.fixture(autouse=True)
def clients_at_the_far_end() -> Iterator[None]:
    """The test's sockets are the peer's; the server, of a wider scope, was started before."""
    with peer_namespace():
        yield
