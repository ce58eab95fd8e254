"""The wire of these tests: a veth pair, one end bound, the other in a network namespace."""

from __future__ import annotations

import os
import socket
import subprocess

from pyroute2 import netns

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
