"""Direct output: packets are as IP makes them, and whatever wants to see one gets it.

Packets of a connection pass IP and the neighbour by while nothing is in their way (``direct.c``).
The obstacles here are what may be: each has to stop packets, or to let them pass as IP does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from stackmap import RingPort
from tests.guest import obstacles
from tests.guest.bpf import drop_all_that_leaves
from tests.guest.commands import ip, sh
from tests.guest.obstacles import counted, device_rule, nftables, set_and_unset, tc_filter
from tests.guest.streams import carry
from tests.guest.wire import (
    ADDRESS,
    ADDRESS6,
    NIC,
    PEER_ADDRESS,
    PEER_ADDRESS6,
    PEER_NAMESPACE,
    connect_pair,
    peer_namespace,
)
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

SIZE = 64
#: Seconds for which nothing must come, and within which it must.
SILENCE, PATIENCE = 0.3, 10.0
#: An address that is on the wire's network, and the MAC address of nobody.
NOBODY, NOBODY6, NOBODYS_MAC = "10.78.0.99", "fd78::99", "02:00:00:00:00:99"

FAMILIES = [
    pytest.param(socket.AF_INET, id="IPv4"),
    pytest.param(socket.AF_INET6, id="IPv6"),
]


Obstacle: TypeAlias = "Callable[[Lines], AbstractContextManager[None]]"


class Lines:
    """Two connections of a port: what both send in one exchange waits in the NIC's queue."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.port = RingPort(NIC, tx_slots=256, rx_slots=256)
        pairs = [connect_pair(family) for _ in range(2)]
        self.peers = [peer for peer, _ in pairs]
        self.socks = [sock for _, sock in pairs]
        self.connections = [self.port.attach(sock) for sock in self.socks]
        self._numbers = itertools.count()
        self._said: list[bytes] = []

    def close(self) -> None:
        self.port.close()
        for sock in (*self.peers, *self.socks):
            sock.close()

    @property
    def ipv6(self) -> bool:
        return self.family == socket.AF_INET6

    @property
    def direct(self) -> int:
        return self.port.stats().direct_packets

    def say(self) -> None:
        """Send a message on each connection, in one sync."""
        message = b"%064d" % next(self._numbers)
        self._said.append(message)
        for connection in self.connections:
            connection.write(message)
        self.port.exchange(0)

    def hear(self) -> None:
        """Receive all that was said, and no more."""
        expected = b"".join(self._said)
        self._said.clear()
        for peer in self.peers:
            peer.settimeout(PATIENCE)
            assert receive_exactly(peer, len(expected)) == expected

    def hear_nothing(self) -> None:
        for peer in self.peers:
            peer.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                peer.recv(1)

    def talk(self) -> int:
        """Say and hear something; return how many of its packets were direct."""
        before = self.direct
        self.say()
        self.hear()
        return self.direct - before


def know_the_neighbour(lines: Lines) -> None:
    """Have it confirmed, which takes seconds where only packets to it do that."""
    command = ["ip", "-n", PEER_NAMESPACE, "-json", "link", "show", "dev", NIC]
    shown = subprocess.run(command, capture_output=True, check=True).stdout
    mac = json.loads(shown)[0]["address"]
    ip(f"neigh replace {_peer(lines)} lladdr {mac} dev {NIC} nud reachable")


@pytest.fixture(params=FAMILIES)
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    with contextlib.closing(Lines(request.param)) as lines:
        know_the_neighbour(lines)
        lines.talk()  # makes the header that the neighbour keeps
        assert lines.talk() >= 2
        yield lines


# -- what packets are ------------------------------------------------------------------------


def output(verdict: str) -> AbstractContextManager[None]:
    return nftables(f"type filter hook output priority 0; tcp flags & syn == 0 counter {verdict}")


def postrouting(verdict: str) -> AbstractContextManager[None]:
    return nftables(f"type filter hook postrouting priority 0; meta l4proto tcp counter {verdict}")


def captured(lines: Lines, here: bool) -> list[Ether]:
    """The frames of what is said once, as a tap sees them at this end of the wire or the other."""
    everything = socket.htons(3)  # ETH_P_ALL
    with contextlib.nullcontext() if here else peer_namespace():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything)
    with tap:
        tap.bind((NIC, 3))
        tap.settimeout(PATIENCE)
        lines.say()
        lines.hear()
        frames: list[Ether] = []
        while len(frames) < len(lines.peers):
            data, (_name, _protocol, direction, *_rest) = tap.recvfrom(2048)
            frame = Ether(data)
            outgoing = direction == socket.PACKET_OUTGOING
            if TCP in frame and len(frame[TCP].payload) == SIZE and outgoing == here:
                frames.append(frame)
    return frames


@pytest.mark.parametrize("here", [True, False], ids=["at this end", "at the other"])
def test_a_tap_sees_each_packet(lines: Lines, here: bool) -> None:
    before = lines.direct
    assert len(captured(lines, here)) == len(lines.peers)
    assert lines.direct - before >= len(lines.peers)


#: Options of sockets, by family, that IP writes into its header.
OPTIONS: dict[str, list[tuple[int, int, int]]] = {
    "defaults": [],
    "TTL": [(socket.IPPROTO_IP, socket.IP_TTL, 33), (socket.IPPROTO_IPV6, 16, 33)],
    "TOS": [(socket.IPPROTO_IP, socket.IP_TOS, 0x48), (socket.IPPROTO_IPV6, 67, 0x48)],
    "may be fragmented": [(socket.IPPROTO_IP, 10, 0), (socket.IPPROTO_IPV6, 23, 0)],
    "no flow label": [(socket.IPPROTO_IPV6, 70, 0)],
}


@pytest.mark.parametrize("options", OPTIONS)
def test_packets_are_as_ip_makes_them(lines: Lines, options: str) -> None:
    """The oracle is IP itself, whose way a rule of netfilter makes all packets go."""
    for level, name, value in OPTIONS[options]:
        if lines.ipv6 == (level == socket.IPPROTO_IPV6):
            for sock in lines.socks:
                sock.setsockopt(level, name, value)
    lines.talk()  # some options make a socket look for its route again
    before = lines.direct
    direct = captured(lines, here=False)
    assert lines.direct - before >= len(direct)
    with output("accept"):
        before = lines.direct
        by_ip = captured(lines, here=False)
        assert lines.direct == before
    for one, other in zip(direct, by_ip, strict=True):
        assert bytes(one)[:14] == bytes(other)[:14]
        if lines.ipv6:
            assert bytes(one[IPv6])[:40] == bytes(other[IPv6])[:40]
            continue
        assert other[IP].id == one[IP].id + 1
        assert _sum_is_right(one)
        assert _sum_is_right(other)
        for frame in (one, other):
            frame[IP].id = frame[IP].chksum = 0
        assert bytes(one[IP])[:20] == bytes(other[IP])[:20]


def _sum_is_right(frame: Ether) -> bool:
    header = IP(bytes(frame[IP])[:20])
    del header.chksum
    return bool(IP(bytes(header)).chksum == frame[IP].chksum)


def counters(lines: Lines) -> dict[str, int]:
    """What the system counts of packets that go out: TCP, IP, and the device."""
    found: dict[str, int] = {}
    snmp = Path("/proc/net/snmp").read_text().splitlines()
    for names, values in zip(snmp[::2], snmp[1::2], strict=True):
        for name, value in zip(names.split(), values.split(), strict=True):
            if re.fullmatch("[0-9]+", value):
                found[names.split(":")[0] + name] = int(value)
    for line in Path("/proc/net/snmp6").read_text().splitlines():
        name, value = line.split()
        found[name] = int(value)
    family = "Ip6" if lines.ipv6 else "Ip"
    device = Path(f"/sys/class/net/{NIC}/statistics")
    return {
        "segments": found["TcpOutSegs"] + found["TcpRetransSegs"],
        "requests": found[f"{family}OutRequests"],
        "packets": int((device / "tx_packets").read_text()),
        "bytes": int((device / "tx_bytes").read_text()),
        "octets": found.get("Ip6OutOctets", 0) if lines.ipv6 else 0,
    }


def test_each_packet_is_counted_everywhere(lines: Lines) -> None:
    before = counters(lines)
    direct = sum(lines.talk() for _ in range(50))
    after = counters(lines)
    delta = {name: after[name] - before[name] for name in before}
    assert direct >= 100
    assert delta["segments"] == direct
    # Neighbours are asked for and confirmed meanwhile.
    assert 0 <= delta["requests"] - direct <= 4
    assert 0 <= delta["packets"] - direct <= 8
    if lines.ipv6:
        assert 0 <= delta["bytes"] - delta["octets"] - 14 * delta["packets"] <= 8 * 100


# -- what may want packets -------------------------------------------------------------------


def _peer(lines: Lines) -> str:
    return PEER_ADDRESS6 if lines.ipv6 else PEER_ADDRESS


def _route(lines: Lines, what: str) -> AbstractContextManager[None]:
    length = 128 if lines.ipv6 else 32
    route = f"ip route add {what} {_peer(lines)}/{length}"
    return set_and_unset(route, f"ip route del {_peer(lines)}/{length}")


def blackhole(lines: Lines) -> AbstractContextManager[None]:
    return _route(lines, "blackhole")


@contextlib.contextmanager
def gateway(lines: Lines) -> Iterator[None]:
    nobody = NOBODY6 if lines.ipv6 else NOBODY
    length = 128 if lines.ipv6 else 32
    ip(f"neigh replace {nobody} lladdr {NOBODYS_MAC} dev {NIC} nud permanent")
    try:
        with set_and_unset(
            f"ip route add {_peer(lines)}/{length} via {nobody} dev {NIC}",
            f"ip route del {_peer(lines)}/{length}",
        ):
            yield
    finally:
        ip(f"neigh del {nobody} dev {NIC}")


@contextlib.contextmanager
def neighbour(lines: Lines) -> Iterator[None]:
    """The peer has got the MAC address of nobody."""
    ip(f"neigh replace {_peer(lines)} lladdr {NOBODYS_MAC} dev {NIC} nud permanent")
    try:
        yield
    finally:
        know_the_neighbour(lines)


def policy(lines: Lines) -> AbstractContextManager[None]:
    return obstacles.policy(ADDRESS6 if lines.ipv6 else ADDRESS, _peer(lines), "out")


#: What stops packets while it is there.
STOPS: dict[str, Obstacle] = {
    "a rule for output": lambda _lines: output("drop"),
    "a rule after routing": lambda _lines: postrouting("drop"),
    "a policy of IPsec": policy,
    "a route by a gateway": gateway,
    "a neighbour's new address": neighbour,
}

#: The same, of whichever family the packets are.
STOPS_ANY: dict[str, Obstacle] = {
    "a rule for the device": lambda _lines: device_rule("egress"),
    "a filter of tc": lambda _lines: tc_filter("egress", "drop"),
    "a program of the cgroup": lambda _lines: drop_all_that_leaves(),
    "a route to nowhere": blackhole,
}


@pytest.mark.parametrize("obstacle", STOPS)
def test_what_stops_packets_stops_these(lines: Lines, obstacle: str) -> None:
    is_stopped_by(STOPS[obstacle], lines)


@pytest.mark.parametrize("obstacle", STOPS_ANY)
@pytest.mark.parametrize("lines", FAMILIES[:1], indirect=True)
def test_what_stops_packets_of_any_family_stops_these(lines: Lines, obstacle: str) -> None:
    is_stopped_by(STOPS_ANY[obstacle], lines)


def is_stopped_by(obstacle: Obstacle, lines: Lines) -> None:
    """Nothing comes while the obstacle is there; then all does, and directly again."""
    with obstacle(lines):
        lines.say()
        lines.hear_nothing()
    deadline = time.monotonic() + PATIENCE
    lines.say()
    lines.hear()
    while lines.talk() < 2:
        assert time.monotonic() < deadline, "packets are not direct again"


#: An IPv4 option that does nothing, and the same as a destination option of IPv6.
NOTHING = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x01"),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, b"\0\0\1\4\0\0\0\0"),
}


@contextlib.contextmanager
def ip_options(lines: Lines) -> Iterator[None]:
    level, name, value = NOTHING[socket.AF_INET6 if lines.ipv6 else socket.AF_INET]
    for sock in lines.socks:
        sock.setsockopt(level, name, value)
    yield
    for sock in lines.socks:
        sock.setsockopt(level, name, b"")


#: What lets packets pass, but wants to see them.
SEES: dict[str, Obstacle] = {
    "a rule for output": lambda _lines: output("accept"),
    "a rule after routing": lambda _lines: postrouting("accept"),
    "options of IP": ip_options,
}


@pytest.mark.parametrize("obstacle", SEES)
def test_what_sees_packets_sees_these(lines: Lines, obstacle: str) -> None:
    with SEES[obstacle](lines):
        assert lines.talk() == 0
        if obstacle.startswith("a rule"):
            assert counted() >= len(lines.peers)
    lines.talk()  # after its options changed, a socket looks for its route again
    assert lines.talk() >= 2


def test_options_of_ip_are_in_the_packets(lines: Lines) -> None:
    with ip_options(lines):
        for frame in captured(lines, here=False):
            if lines.ipv6:
                assert frame[IPv6].nh == socket.IPPROTO_DSTOPTS
            else:
                assert frame[IP].ihl == 6


# -- changes of the way ----------------------------------------------------------------------


def test_streams_survive_changes_of_the_way() -> None:
    """Packets go one way and the other, in turns, under load: none is overtaken."""
    over = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        while not over.wait(0.01):
            with output("accept"):
                time.sleep(0.02)
            changes += 1

    with RingPort(NIC) as port:
        pairs = [connect_pair(family) for family in (socket.AF_INET, socket.AF_INET6) * 2]
        lines = [(port.attach(sock), peer) for peer, sock in pairs]
        before = _out_of_order()
        thread = threading.Thread(target=change)
        thread.start()
        try:
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline or changes < 4:
                for number, (connection, peer) in enumerate(lines):
                    message = struct.pack("<I", number) * 500
                    connection.write(message)
                    port.exchange(0)
                    assert receive_exactly(peer, len(message)) == message
            carry(port, lines, 2_000_000)
        finally:
            over.set()
            thread.join()
        stats = port.stats()
        assert stats.direct_packets > 0
        assert _out_of_order() == before
        for peer, sock in pairs:
            peer.close()
            sock.close()


def _out_of_order() -> int:
    """How many segments the peers were sent too early."""
    with peer_namespace():
        netstat = Path("/proc/thread-self/net/netstat").read_text()
    names, values = (line.split() for line in netstat.splitlines() if line.startswith("TcpExt:"))
    return int(values[names.index("TCPOFOQueue")])


def test_a_detached_socket_goes_the_kernels_way(lines: Lines) -> None:
    for connection in lines.connections:
        lines.port.detach(connection)
    before = lines.direct
    for sock, peer in zip(lines.socks, lines.peers, strict=True):
        sock.sendall(b"by the socket")
        assert receive_exactly(peer, 13) == b"by the socket"
    assert lines.direct == before


def test_packets_go_on_while_the_nic_is_not_bound(lines: Lines) -> None:
    sh(f"tc qdisc del dev {NIC} root")
    try:
        assert lines.talk() == 0
    finally:
        sh(f"tc qdisc replace dev {NIC} root stackmap")
    assert lines.talk() >= 2
