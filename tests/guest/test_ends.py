"""The ends of connections on rings, and those on either backend that need rights."""

from __future__ import annotations

import errno
import socket
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from stackmap import Event, RingPort, SocketPort
from stackmap._sockets import _has_failed
from tests.guest.peer import inside
from tests.guest.site import Site, references
from tests.guest.test_soft_errors import HOST, heard
from tests.guest.wire import NIC, connect_pair
from tests.unit.test_ends_contract import *  # noqa: F403 (the tests, and the fixture they share)
from tests.unit.test_ends_contract import (
    STATES,
    Cell,
    State,
    check_failure,
    give_up_soon,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stackmap import Port

SIZES = {"tx_slots": 16, "rx_slots": 4, "spare_buffers": 64}


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """When this ends, no port, connection or buffer may be left, which would hold the module."""
    before = references()
    yield
    eventually(lambda: references() == before, lambda: (references(), before))


@pytest.fixture(name="small_port")
def small_ring_port() -> Iterator[Port]:
    """A port, which may hold nothing of its connections any more when the test is over."""
    with leaving_nothing(), RingPort(NIC, **SIZES) as port:
        yield port
        assert not port.connections


@pytest.fixture(name="socket_pair")
def pair_across_the_wire() -> Callable[[], tuple[socket.socket, socket.socket]]:
    """Makes established connections; the first socket is the peer's, the second is for a port."""
    return connect_pair


del small_port, socket_pair  # type: ignore[name-defined] # noqa: F821 (those of sockets)


# -- an ICMP error, with IP_RECVERR set --


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize("backend", ["rings", "sockets"])
def test_icmp_error(backend: str, state: State) -> None:
    peer, sock = connect_pair()
    with (
        leaving_nothing(),
        closing(peer),
        RingPort(NIC, **SIZES) if backend == "rings" else SocketPort() as port,
        heard(sock) as wire,
    ):
        cell = Cell(port, peer, sock, state)
        cell.enter()
        wire.complain(HOST)
        eventually(lambda: _has_failed(sock), lambda: "the connection never fails")
        check_failure(cell, errno.EHOSTUNREACH)
        assert sock.fileno() == -1
        assert not port.connections
        cell.let_peer_read()


# -- a NIC that goes away --


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.remove()


@pytest.mark.parametrize("state", STATES, ids=str)
def test_nic_gone(site: Site, state: State) -> None:
    """No connection notices until TCP gives up."""
    with leaving_nothing():
        site.build()
        with inside(site.app), socket.create_server((site.address, 0)) as listener:
            port = RingPort(site.nic, **SIZES)
            with inside(site.peer):
                peer = socket.create_connection(listener.getsockname())
            sock, _address = listener.accept()
        with port, closing(peer):
            cell = Cell(port, peer, sock, state)
            cell.enter()
            site.unplug()
            site.unplugged()
            give_up_soon(sock)
            eventually(lambda: cell.tcp_info("B") == 7, lambda: cell.tcp_info("B"))
            cell.link.until_event(Event.CLOSED)
            code = next(entry[1] for entry in cell.link.story if isinstance(entry, tuple))
            assert code in (errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH)
            check_failure(cell, code)
            assert sock.fileno() == -1
            assert not port.connections
