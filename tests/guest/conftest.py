"""Tests that run inside a guest: the module is loaded there, and a NIC of their own is bound.

``tests/vm/test_inside.py`` runs them.  The NIC is one end of a veth pair; peers connect from a
network namespace at its other end, so payload crosses a real device and a real qdisc.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from tests.guest.attached import Attached
from tests.guest.commands import ip, sh
from tests.guest.raw import RawPort
from tests.guest.wire import (
    ADDRESS,
    ADDRESS6,
    NIC,
    PEER_ADDRESS,
    PEER_ADDRESS6,
    PEER_NAMESPACE,
    connect_pair,
    connect_pair_from_here,
    in_peer_namespace,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where a file says which of its tests are ``IN_EMULATION``, mark the others as long."""
    for item in items:
        module = item.getparent(pytest.Module)
        chosen = getattr(module and module.obj, "IN_EMULATION", None)
        if chosen is not None and item.name not in chosen:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def nic() -> Iterator[str]:
    """A bound NIC with a peer.

    Its addresses are not checked for duplicates.  The end of that check adds a route for the
    link-local address, after which each IPv6 socket looks up its route again: one packet of each
    connection would not be direct, a second or two after the NIC is up.
    """
    unchecked = "sysctl -qw net.ipv6.conf.default.accept_dad=0"
    sh(f"""
        modprobe veth; {unchecked}
        ip netns add {PEER_NAMESPACE}; ip netns exec {PEER_NAMESPACE} {unchecked}
    """)
    ip(f"""
        link add {NIC} type veth peer {NIC} netns {PEER_NAMESPACE}
        addr add {ADDRESS}/24 dev {NIC}
        addr add {ADDRESS6}/64 dev {NIC}
        link set {NIC} up
    """)
    ip(
        f"""
        addr add {PEER_ADDRESS}/24 dev {NIC}
        addr add {PEER_ADDRESS6}/64 dev {NIC}
        link set {NIC} up
        link set lo up
        """,
        PEER_NAMESPACE,
    )
    sh(f"tc qdisc replace dev {NIC} root stackmap")
    yield NIC
    ip(f"link del {NIC}\nnetns del {PEER_NAMESPACE}")


@pytest.fixture
def port_factory() -> Callable[[], RingPort]:
    """Makes ports of the backend under test; smaller ones are opened sooner."""
    return lambda: RingPort(NIC, tx_slots=256, rx_slots=256)


@pytest.fixture
def port() -> Iterator[RawPort]:
    """A port without the library, smaller than the default because that is opened sooner."""
    with RawPort(256, 256) as port:
        yield port


@pytest.fixture
def two(port: RawPort) -> Iterator[Attached]:
    """Two connections on that port, one of which must come out unharmed."""
    two = Attached(port)
    yield two
    two.check_honest()
    two.close()


@pytest.fixture(params=["accepted over IPv4", "connected over IPv6"])
def socket_pair(
    request: pytest.FixtureRequest,
) -> Callable[[], tuple[socket.socket, socket.socket]]:
    """Makes established connections; the first socket is the peer's, the second is for a port."""
    if request.param == "accepted over IPv4":
        return connect_pair
    return lambda: connect_pair_from_here(socket.AF_INET6)


@pytest.fixture(params=["IPv4", "IPv6", "both"])
def listening(
    request: pytest.FixtureRequest,
) -> Callable[[], tuple[socket.socket, Callable[[], socket.socket]]]:
    """Makes listening sockets, each with a function that connects to it from the other end."""
    family = socket.AF_INET if request.param == "IPv4" else socket.AF_INET6
    peers = socket.AF_INET6 if request.param == "IPv6" else socket.AF_INET

    def listen() -> tuple[socket.socket, Callable[[], socket.socket]]:
        both = request.param == "both"
        listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        address = ADDRESS6 if peers == socket.AF_INET6 else ADDRESS
        number = listener.getsockname()[1]

        def connect() -> socket.socket:
            peer = in_peer_namespace(peers)
            peer.settimeout(60.0)
            peer.connect((address, number))
            return peer

        return listener, connect

    return listen
