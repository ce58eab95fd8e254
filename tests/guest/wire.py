"""The wire of these tests: a veth pair, one end bound, the other in a network namespace."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.guest.commands import sh
from tests.guest.peer import inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

NIC = "sm0"
ADDRESS = "10.78.0.1"
PEER_ADDRESS = "10.78.0.2"
ADDRESS6 = "fd78::1"
PEER_ADDRESS6 = "fd78::2"
PEER_NAMESPACE = "peer"


def peer_namespace() -> AbstractContextManager[None]:
    """Sockets made inside are at the other end of the wire."""
    return inside(PEER_NAMESPACE)


def in_peer_namespace(family: int = socket.AF_INET) -> socket.socket:
    """A TCP socket of the namespace at the other end of the wire."""
    with peer_namespace():
        return socket.socket(family)


def connect_pair(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """A connection across the wire: the peer's socket, and the accepted one for a port."""
    address = ADDRESS6 if family == socket.AF_INET6 else ADDRESS
    with socket.create_server((address, 0), family=family) as listener:
        peer = in_peer_namespace(family)
        peer.settimeout(60.0)
        peer.connect(listener.getsockname())
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted, _address = listener.accept()
    return peer, accepted


def connect_pair_from_here(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Like :func:`connect_pair`, but the socket for a port is the one that called connect()."""
    address = PEER_ADDRESS6 if family == socket.AF_INET6 else PEER_ADDRESS
    with peer_namespace():
        listener = socket.create_server((address, 0), family=family)
    with listener:
        opened = socket.create_connection(listener.getsockname()[:2])
        peer, _address = listener.accept()
    peer.settimeout(60.0)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer, opened


@contextmanager
def peer_loses(percent: int) -> Iterator[None]:
    """Packets from the peers are lost, ACKs included; packets to them arrive."""
    with _peer_sends_through(f"loss {percent}%"):
        yield


@contextmanager
def peer_is_late_by(milliseconds: int) -> Iterator[None]:
    """Packets from the peers take so long to arrive."""
    with _peer_sends_through(f"delay {milliseconds}ms"):
        yield


@contextmanager
def _peer_sends_through(netem: str) -> Iterator[None]:
    change = f"tc -n {PEER_NAMESPACE} qdisc"
    sh(f"modprobe sch_netem; {change} replace dev {NIC} root netem {netem}")
    try:
        yield
    finally:
        sh(f"{change} del dev {NIC} root")
