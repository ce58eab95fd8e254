"""README's first program and those of ``examples/`` on rings, with the same clients."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.guest.wire import ADDRESS, PEER_ADDRESS, peer_namespace
from tests.unit.test_examples import *  # noqa: F403 (the tests, and the fixtures they share)
from tests.unit.test_examples import Place

if TYPE_CHECKING:
    from collections.abc import Iterator


class OnRings(Place):
    """Programs run here, on rings of the bound NIC; their clients are beyond it."""

    backend = "stackmap"
    address, peer_address = ADDRESS, PEER_ADDRESS

    def __init__(self) -> None:
        super().__init__("")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]

    @contextmanager
    def clients(self) -> Iterator[None]:
        with peer_namespace():
            yield


del place  # noqa: F821 (in its stead:)


@pytest.fixture(scope="module", name="place")
def on_rings() -> OnRings:
    return OnRings()
