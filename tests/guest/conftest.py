"""Tests that run inside a guest: the module is loaded there, and a NIC of their own is bound.

``tests/vm/test_inside.py`` runs them.  The NIC is one end of a veth pair; peers connect from a
network namespace at its other end, so payload crosses a real device and a real qdisc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from tests.guest.wire import ADDRESS, NIC, PEER_ADDRESS, PEER_NAMESPACE, connect_pair, sh

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session", autouse=True)
def nic() -> Iterator[str]:
    """A bound NIC with a peer."""
    sh(f"""
        modprobe veth
        ip netns add {PEER_NAMESPACE}
        ip link add {NIC} type veth peer name {NIC} netns {PEER_NAMESPACE}
        ip addr add {ADDRESS}/24 dev {NIC}
        ip link set {NIC} up
        ip -n {PEER_NAMESPACE} addr add {PEER_ADDRESS}/24 dev {NIC}
        ip -n {PEER_NAMESPACE} link set {NIC} up
        ip -n {PEER_NAMESPACE} link set lo up
        tc qdisc replace dev {NIC} root stackmap
    """)
    yield NIC
    sh(f"ip link del {NIC}; ip netns del {PEER_NAMESPACE}")


@pytest.fixture
def port_factory() -> Callable[[], RingPort]:
    """Makes ports of the backend under test."""
    return lambda: RingPort(NIC)


@pytest.fixture
def socket_pair() -> Callable[[], tuple[socket.socket, socket.socket]]:
    """Makes established connections; the first socket is the peer's, the second is for a port."""
    return connect_pair
