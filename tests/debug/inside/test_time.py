"""TCP's minutes and hours in simulated time, which stands still while the guest works."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guest.commands import sh
from tests.guest.raw import CLOSED, ERROR, RawPort
from tests.guest.wire import ADDRESS, NIC, PEER_ADDRESS, PEER_NAMESPACE, connect_pair
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.attached import Attached

MINUTE = 60.0
HOUR = 60 * MINUTE
#: TCP's state numbers in /proc/net/tcp.
TIME_WAIT = "06"
TCPI_BACKOFF = 4


@pytest.fixture
def silence() -> Iterator[None]:
    """Loses everything that the peer sends.

    It sends no ARP either, and an unreachable neighbour would make TCP try more often (RFC 6069).
    """
    sh(f"""
        ip neigh replace {PEER_ADDRESS} dev {NIC} nud permanent \\
            lladdr $(ip netns exec {PEER_NAMESPACE} cat /sys/class/net/{NIC}/address)
        tc -n {PEER_NAMESPACE} qdisc replace dev {NIC} root netem loss 100%
    """)
    yield
    end_silence()


def end_silence() -> None:
    """May come twice: from the test, and at its end."""
    sh(f"tc -n {PEER_NAMESPACE} qdisc replace dev {NIC} root noqueue")


def backoff(sock: socket.socket) -> int:
    """How often the retransmission timer has doubled."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[TCPI_BACKOFF]


def events(port: RawPort, id: int) -> list[tuple[int, int]]:
    """A connection's events with their errnos."""
    return [(event, err) for source, _data, event, err in port.receive() if source == id and event]


def send_unacknowledged(two: Attached, slots: int = 5) -> None:
    for k in range(slots):
        two.port.send(two.id, bytes([k]) * 1000)
    time.sleep(1)
    assert two.port.stats()["pinned"] == slots


def test_buffers_stay_pinned_through_retransmissions(two: Attached, silence: None) -> None:
    """As long as TCP tries it may send the bytes again; with the ACK all are released."""
    before = two.port.stats()
    send_unacknowledged(two)
    time.sleep(3 * MINUTE)
    assert backoff(two.sock) >= 7
    assert two.port.stats()["pinned"] == 5
    end_silence()
    time.sleep(3 * MINUTE)
    after = two.port.stats()
    assert after["pinned"] == 0
    assert after["released_ack"] - before["released_ack"] == 5
    assert after["released_reset"] == before["released_reset"]
    assert receive_exactly(two.peer, 5000) == b"".join(bytes([k]) * 1000 for k in range(5))


def test_giving_up_releases_buffers(two: Attached, silence: None) -> None:
    """After fifteen retransmissions TCP fails the connection, and its buffers come back."""
    before = two.port.stats()
    send_unacknowledged(two)
    time.sleep(HOUR)
    after = two.port.stats()
    assert after["pinned"] == 0
    assert after["released_reset"] - before["released_reset"] == 5
    assert after["released_ack"] == before["released_ack"]
    assert events(two.port, two.id) == [(ERROR, errno.ETIMEDOUT), (CLOSED, 0)]
    end_silence()


def test_keepalive_ends_a_connection(two: Attached, silence: None) -> None:
    two.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    time.sleep(1.9 * HOUR)
    assert events(two.port, two.id) == []
    time.sleep(HOUR)
    assert events(two.port, two.id) == [(ERROR, errno.ETIMEDOUT), (CLOSED, 0)]
    end_silence()


def test_keepalive_spares_a_connection(two: Attached) -> None:
    """The probes are answered: nothing happens, and nothing is pinned."""
    two.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    time.sleep(5 * HOUR)
    assert events(two.port, two.id) == []
    assert two.port.stats()["pinned"] == 0
    two.port.send(two.id, b"hours later")
    assert two.peer.recv(100) == b"hours later"


def test_time_wait_passes(port: RawPort) -> None:
    """An attached socket that is closed first waits like any other, and holds nothing."""
    before = port.stats()["bufs_free"]
    peer, sock = connect_pair()
    number = sock.getsockname()[1]
    id = port.attach(sock)
    port.send(id, b"goodbye")
    assert peer.recv(100) == b"goodbye"
    sock.close()
    assert peer.recv(1) == b""
    peer.close()
    time.sleep(1)
    assert events(port, id) == [(CLOSED, 0)]
    assert states(number) == [TIME_WAIT]
    assert port.stats()["pinned"] == 0
    assert port.stats()["bufs_free"] == before
    time.sleep(2 * MINUTE)
    assert states(number) == []


def states(number: int) -> list[str]:
    """The states of this end's connections on one of its ports."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    end = f"{bytes(reversed(socket.inet_aton(ADDRESS))).hex().upper()}:{number:04X}"
    return [
        state for _number, local, _remote, state, *_rest in map(str.split, lines) if local == end
    ]
