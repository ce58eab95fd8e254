"""The memcached server on rings: its memory is bounded, and nobody keeps the others waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.pressure import LOADS, allow_descriptors, peak, press, server
from tests.guest.wire import ADDRESS, NIC, peer_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.conformance import Address

MOST = 160_000_000


@pytest.fixture(scope="module")
def pressed() -> Iterator[tuple[Address, int]]:
    """One server for all loads: what one leaves behind adds to the next."""
    allow_descriptors()
    with server(
        "--backend", "stackmap", "--nic", NIC, "--listen", f"{ADDRESS}:0", "--memory", "64",
        "--max-connections", "2000",
    ) as running:  # fmt: skip
        yield running


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("load", LOADS)
def test_memory_is_bounded_and_another_client_is_served(
    pressed: tuple[Address, int], load: str
) -> None:
    address, pid = pressed
    with peer_namespace():
        probe = press(address, load)
    assert probe.count > 0
    print(f"{load}: peak {peak(pid) / 1e6:.0f} MB, {probe.count} answers")
    assert peak(pid) < MOST
