"""An attached socket is to TCP and to IPv6 what it was: nothing of their state is bent."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from contextlib import closing
from pathlib import Path

import pytest

from tests.guest.commands import sh
from tests.guest.raw import RawPort
from tests.guest.tcp_info import tcp_info
from tests.guest.wire import (
    ADDRESS,
    NIC,
    PEER_ADDRESS,
    PEER_NAMESPACE,
    connect_pair,
    in_peer_namespace,
    peer_namespace,
)
from tests.receiving import receive_exactly
from tests.waiting import eventually

IPV6_ADDRFORM, TCP_ULP = 1, 31
BASE_MSS = 600


def unspecified(sock: socket.socket) -> None:
    """connect() with AF_UNSPEC: the socket is not connected any more."""
    nowhere = struct.pack("<H14x", socket.AF_UNSPEC)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), nowhere, len(nowhere)) == 0


def test_an_ipv4_address_of_a_mapped_connection_is_in_use() -> None:
    """bind() without SO_REUSEADDR, where a connection of a dual-stack listener has the port."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        number = listener.getsockname()[1]
        peer = in_peer_namespace()
        peer.connect((ADDRESS, number))
        sock, _address = listener.accept()
    with closing(peer), closing(sock), RawPort(16, 16) as port:
        for attached in (False, True):
            if attached:
                port.attach(sock)
            with socket.socket() as other, pytest.raises(OSError, match="in use") as caught:
                other.bind((ADDRESS, number))
            assert caught.value.errno == errno.EADDRINUSE
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


def test_a_mapped_socket_connects_again_after_detaching() -> None:
    with peer_namespace():
        listener = socket.create_server((PEER_ADDRESS, 0))
    mapped = (f"::ffff:{PEER_ADDRESS}", listener.getsockname()[1])
    with closing(listener), socket.socket(socket.AF_INET6) as sock, RawPort(16, 16) as port:
        for number in range(3):
            sock.connect(mapped)
            peer, _address = listener.accept()
            with closing(peer):
                id = port.attach(sock)
                port.send(id, b"ring")
                assert receive_exactly(peer, 4) == b"ring"
                port.detach(id)
                sock.sendall(b"%04d" % number)
                assert receive_exactly(peer, 4) == b"%04d" % number
                unspecified(sock)


def test_the_upper_layer_protocol_is_not_for_setsockopt() -> None:
    known = Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    assert "stackmap" in known
    peer, sock = connect_pair()
    with closing(peer), closing(sock), RawPort(16, 16) as port:
        with pytest.raises(OSError, match="not supported") as caught:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"stackmap")
        assert caught.value.errno == errno.EOPNOTSUPP
        port.send(port.attach(sock), b"attached all the same")
        assert peer.recv(100) == b"attached all the same"


@pytest.mark.parametrize("mode", [1, 2])
def test_attaching_raises_no_mtu(mode: int) -> None:
    """Big packets vanish without an ICMP message, and TCP has found out (RFC 4821)."""
    where = "sysctl -qw net.ipv4.tcp"
    far = f"ip -n {PEER_NAMESPACE} link set dev {NIC} mtu"
    sh(f"{where}_mtu_probing={mode}; {where}_base_mss={BASE_MSS}; {where}_retries1=1")
    sh(f"ethtool -K {NIC} tso off gso off")
    try:
        peer, sock = connect_pair()
        with closing(peer), closing(sock), RawPort(64, 16) as port:
            sh(f"{far} 1280")
            sock.sendall(bytes(8000))
            receive_exactly(peer, 8000)
            eventually(lambda: not tcp_info(sock)["unacked"], lambda: tcp_info(sock))
            works = tcp_info(sock)["mss"]
            assert works < 1280
            id = port.attach(sock)
            assert tcp_info(sock)["mss"] == works
            for _ in range(5):
                port.send(id, bytes(4096))
                port.send(id, bytes(100))
                receive_exactly(peer, 4196)
            assert tcp_info(sock)["mss"] == works
            assert port.stats()["released_reset"] == 0
    finally:
        sh(f"{far} 1500; ethtool -K {NIC} tso on gso on")
        sh(f"{where}_mtu_probing=0; {where}_base_mss=1024; {where}_retries1=3")
