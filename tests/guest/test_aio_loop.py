"""The loop does on rings what it does on sockets, tested with the same tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap import Port, RingPort
from stackmap.aio import loop_factory
from tests.aio_loops import Recorder, connect, receive, run, until
from tests.guest.wire import NIC
from tests.unit.test_aio_loop import *  # noqa: F403 (the tests)

if TYPE_CHECKING:
    from collections.abc import Callable

del test_the_environment_chooses_the_port  # noqa: F821


@pytest.fixture  # type: ignore[no-redef]
def make_port() -> Callable[[], Port]:
    """Makes ports on rings; smaller ones are opened sooner."""
    return lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256)


def test_bytes_were_on_rings(make_port: Callable[[], Port]) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.write(bytes(100_000))
            await receive(peer, 100_000)
            peer.send(b"answer")
            await until(lambda: protocol.data)
            stats = transport.get_extra_info("stackmap.port").stats()
            assert (stats.tx_bytes, stats.rx_bytes) == (100_000, 6)
            transport.close()
            await until(lambda: protocol.lost)

    run(loop_factory(make_port), main())
