"""The transport does on rings what it does on sockets, tested with the same tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from tests.aio_loops import Recorder, connect, receive, run
from tests.guest.wire import NIC
from tests.unit.test_aio_transport import *  # noqa: F403 (the tests)

if TYPE_CHECKING:
    from tests.unit.test_aio_transport import NewLoop


@pytest.fixture  # type: ignore[no-redef]
def new_loop() -> NewLoop:
    """Makes loops whose connections are on rings; smaller ports are opened sooner."""
    return loop_factory(lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256))


@pytest.mark.parametrize("parts", [[b"one, "] * 20, (b"", bytearray(b"two"), memoryview(b"three"))])
def test_small_parts_share_a_slot(new_loop: NewLoop, parts: list[bytes]) -> None:
    async def main() -> None:
        transport, _protocol, peer = await connect(Recorder)
        port = transport.get_extra_info("stackmap.port")
        with peer:
            before = port.stats()
            transport.writelines(parts)
            sent = b"".join(parts)
            assert await receive(peer, len(sent)) == sent
            now = port.stats()
            assert now.slots_sent - before.slots_sent == 1
            assert now.tx_bytes - before.tx_bytes == len(sent)
            transport.close()

    run(new_loop, main())
