"""Tests that run inside a guest: the module is loaded there, and a NIC of their own is bound.

``tests/vm/test_inside.py`` runs them.  The NIC is one end of a veth pair; peers connect from a
network namespace at its other end, so payload crosses a real device and a real qdisc.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyroute2 import netns

from stackmap import RingPort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

NIC = "sm0"
ADDRESS = "10.78.0.1"
PEER_ADDRESS = "10.78.0.2"
PEER_NAMESPACE = "peer"


def sh(command: str) -> None:
    """Run a shell command that must succeed."""
    subprocess.run(["sh", "-ec", command], check=True)


def in_peer_namespace() -> socket.socket:
    """A TCP socket of the namespace at the other end of the wire."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        netns.setns(PEER_NAMESPACE)
        return socket.socket()
    finally:
        netns.setns(home)
        os.close(home)


def connect_pair() -> tuple[socket.socket, socket.socket]:
    """A connection across the wire: the peer's socket, and the one for a port."""
    with socket.create_server((ADDRESS, 0)) as listener:
        peer = in_peer_namespace()
        peer.settimeout(60.0)
        peer.connect(listener.getsockname())
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted, _address = listener.accept()
    return peer, accepted


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
