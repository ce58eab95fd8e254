"""Servers and clients that people run, on rings, tested with the same tests as on sockets."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from tests.guest.wire import ADDRESS, NIC, PEER_ADDRESS, peer_namespace
from tests.unit.test_aio_clients import *  # noqa: F403 (the tests, and the fixtures they share)
from tests.unit.test_aio_clients import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

#: An emulated guest takes half a minute for this one, and half an hour for all.
IN_EMULATION = {"test_http_server[plain-serve_aiohttp]"}


class OnRings(Place):
    """Programs run here, on rings of the bound NIC; their peers are beyond it."""

    backend = "stackmap"
    address, peer_address = ADDRESS, PEER_ADDRESS

    def environment(self) -> dict[str, str]:
        return {"STACKMAP_BACKEND": self.backend, "STACKMAP_NIC": NIC}

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return loop_factory(lambda: RingPort(NIC, tx_slots=256, rx_slots=256, connections=1024))()

    @contextmanager
    def peers(self) -> Iterator[None]:
        with peer_namespace():
            yield


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def place() -> OnRings:
    return OnRings()
