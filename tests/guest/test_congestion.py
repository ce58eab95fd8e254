"""Congestion controls: whichever one has, a lossy wire is no concern of the rings'."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from tests.guest.commands import sh
from tests.guest.streams import carry
from tests.guest.wire import ADDRESS, NIC, PEER_NAMESPACE, in_peer_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTE = 1_000_000
LOSS = "3%"
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
MODULES = ("tcp_bbr", "tcp_dctcp")


def available() -> list[str]:
    """The congestion controls of the kernel, with those loaded that it may load."""
    for module in MODULES:
        subprocess.run(["modprobe", "-q", module], check=False)
    return AVAILABLE.read_text().split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "congestion_control" in metafunc.fixturenames:
        metafunc.parametrize("congestion_control", available())


@pytest.fixture
def lossy(nic: str) -> Iterator[None]:
    """Each packet is one segment, and some are lost, in both directions.

    The NIC's own queueing is the module's, so what it sends is lost where it arrives.
    """
    peer = f"ip -n {PEER_NAMESPACE}"
    tc = f"tc -n {PEER_NAMESPACE}"
    sh(f"""
        modprobe -a sch_netem ifb sch_ingress act_mirred cls_matchall
        ip link set {nic} gso_max_segs 1
        {peer} link set {nic} gso_max_segs 1
        {tc} qdisc add dev {nic} root netem loss {LOSS} limit 10000
        {peer} link add lossy type ifb
        {peer} link set lossy up
        {tc} qdisc add dev lossy root netem loss {LOSS} limit 10000
        {tc} qdisc add dev {nic} ingress
        {tc} filter add dev {nic} parent ffff: matchall action mirred egress redirect dev lossy
    """)
    yield
    sh(f"""
        {tc} qdisc del dev {nic} ingress
        {peer} link del lossy
        {tc} qdisc del dev {nic} root
        {peer} link set {nic} gso_max_segs 65535
        ip link set {nic} gso_max_segs 65535
    """)


def choose(sock: socket.socket, name: str) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def chosen(sock: socket.socket) -> str:
    """Without ECN, dctcp calls itself dctcp-reno: ECN is agreed on by a SYN that is not lost."""
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    return name.removesuffix("-reno")


def test_there_are_several() -> None:
    assert {"cubic", "reno"} <= set(available())


@pytest.mark.usefixtures("lossy")
def test_a_stream_each_way_over_a_lossy_wire(congestion_control: str) -> None:
    """Chosen before connecting: some of them agree on something then."""
    with socket.create_server((ADDRESS, 0)) as listener, in_peer_namespace() as peer:
        for sock in (listener, peer):
            choose(sock, congestion_control)
        peer.settimeout(60.0)
        peer.connect(listener.getsockname())
        accepted, _address = listener.accept()
        with closing(accepted), RingPort(NIC) as port:
            assert chosen(accepted) == chosen(peer) == congestion_control
            connection = port.attach(accepted)
            carry(port, [(connection, peer)], MEGABYTE)
            state = connection.tcp_state()
            assert chosen(accepted) == congestion_control
            assert state.total_retrans > 0, "nothing was lost"
            assert state.bytes_received == MEGABYTE


def test_changed_while_it_is_attached() -> None:
    """An option of the socket like others, in the middle of both streams."""
    with socket.create_server((ADDRESS, 0)) as listener, in_peer_namespace() as peer:
        peer.settimeout(60.0)
        peer.connect(listener.getsockname())
        accepted, _address = listener.accept()
        with closing(accepted), RingPort(NIC) as port:
            connection = port.attach(accepted)
            for name in available():
                choose(accepted, name)
                connection.write(name.encode())
                carried = b""
                port.exchange()
                peer.setblocking(True)
                while len(carried) < len(name):
                    carried += peer.recv(100)
                assert carried == name.encode()
                assert chosen(accepted) == name
