"""Transports, streams and ports on rings pass the checks of ``stackmap.testing``."""

from __future__ import annotations

import pytest

from stackmap import RingPort
from stackmap.aio import loop_factory
from stackmap.testing import (
    PORT_CHECKS,
    STREAM_CHECKS,
    TRANSPORT_CHECKS,
    check_port,
    check_stream,
    check_transport,
)
from tests.aio_loops import connect_protocols, connect_streams, run
from tests.guest.wire import NIC, connect_pair

new_loop = loop_factory(lambda: RingPort(NIC, tx_slots=64, rx_slots=64, connections=256))


@pytest.mark.parametrize("name", TRANSPORT_CHECKS)
def test_transports_on_rings(name: str) -> None:
    run(new_loop, check_transport(connect_protocols, {name: TRANSPORT_CHECKS[name]}))


@pytest.mark.parametrize("name", STREAM_CHECKS)
def test_streams_on_rings(name: str) -> None:
    run(new_loop, check_stream(connect_streams, {name: STREAM_CHECKS[name]}))


@pytest.mark.parametrize("name", PORT_CHECKS)
def test_ports_on_rings(name: str) -> None:
    def open_port() -> RingPort:
        return RingPort(NIC, tx_slots=256, rx_slots=256)

    check_port(open_port, connect_pair, {name: PORT_CHECKS[name]})
