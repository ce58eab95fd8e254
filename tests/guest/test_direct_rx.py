"""Direct input: TCP gets what IP would give it, and whatever wants to see a packet does.

Packets of attached connections pass IP by on their way in while nothing is in it (``direct_rx.c``).
The oracle is IP itself, whose way a rule of netfilter makes all packets go.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from scapy.layers.inet import IP, TCP, IPOption
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.l2 import Dot1Q, Ether

from stackmap import RingPort
from tests.guest import obstacles
from tests.guest.bpf import drop_all_that_comes, xdp_drops_all
from tests.guest.commands import ip, sh
from tests.guest.obstacles import counted, device_rule, nftables, set_and_unset, tc_filter
from tests.guest.streams import carry
from tests.guest.test_direct import FAMILIES, NOBODY, NOBODY6, PATIENCE, SIZE
from tests.guest.wire import (
    ADDRESS,
    ADDRESS6,
    NIC,
    PEER_ADDRESS,
    PEER_ADDRESS6,
    connect_pair,
    peer_namespace,
)
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from scapy.packet import Packet

#: Seconds for which nothing must come.
SILENCE = 0.3

Obstacle: TypeAlias = "Callable[[Lines], AbstractContextManager[None]]"
Odd: TypeAlias = "Callable[[Crafted], Sequence[Ether | bytes]]"


class Lines:
    """Two connections of a port, whose peers tell it things."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.port = RingPort(NIC, tx_slots=256, rx_slots=256)
        pairs = [connect_pair(family) for _ in range(2)]
        self.peers = [peer for peer, _ in pairs]
        self.socks = [sock for _, sock in pairs]
        self.connections = [self.port.attach(sock) for sock in self.socks]
        self._numbers = itertools.count()
        self._told = b""

    def close(self) -> None:
        self.port.close()
        for sock in (*self.peers, *self.socks):
            sock.close()

    @property
    def ipv6(self) -> bool:
        return self.family == socket.AF_INET6

    @property
    def direct(self) -> int:
        return self.port.stats().direct_received

    def tell(self) -> None:
        """Have each peer send a message."""
        message = b"%064d" % next(self._numbers)
        self._told += message
        for peer in self.peers:
            peer.sendall(message)

    def hear(self) -> None:
        """Receive all that was told, and no more."""
        expected, self._told = self._told, b""
        heard = dict.fromkeys(self.connections, b"")
        deadline = time.monotonic() + PATIENCE
        while any(len(data) < len(expected) for data in heard.values()):
            assert time.monotonic() < deadline, {len(data) for data in heard.values()}
            for segment in self.port.exchange(0.1):
                heard[segment.connection] += bytes(segment.view)  # type: ignore[index]
        assert set(heard.values()) == {expected}

    def hear_nothing(self) -> None:
        deadline = time.monotonic() + SILENCE
        while time.monotonic() < deadline:
            assert not self.port.exchange(0.05)

    def listen(self) -> int:
        """Have something told, and hear it; return how many packets came directly."""
        before = self.direct
        self.tell()
        self.hear()
        return self.direct - before

    def hear_directly(self) -> None:
        """Have things told until packets come directly."""
        deadline = time.monotonic() + PATIENCE
        while self.listen() < 2:
            assert time.monotonic() < deadline, "packets do not come directly again"


@pytest.fixture(params=FAMILIES)
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    with contextlib.closing(Lines(request.param)) as lines:
        assert lines.listen() >= 2
        yield lines


# -- what TCP gets ---------------------------------------------------------------------------


def prerouting(verdict: str) -> AbstractContextManager[None]:
    return nftables(f"type filter hook prerouting priority 0; meta l4proto tcp counter {verdict}")


def input_(verdict: str) -> AbstractContextManager[None]:
    return nftables(f"type filter hook input priority 0; meta l4proto tcp counter {verdict}")


#: What a crafted peer sends each time: with its TCP header, less than the largest such header.
PAYLOAD = b"0123456789abcdefghijklmn"
_PORTS = itertools.count(40000)


class Crafted:
    """A connection whose peer is frames of our own, from an address that no host has."""

    def __init__(self, family: int) -> None:
        self.ipv6 = family == socket.AF_INET6
        own, stranger = (ADDRESS6, NOBODY6) if self.ipv6 else (ADDRESS, NOBODY)
        with peer_namespace():
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._wire.bind((NIC, 3))
        self._wire.settimeout(PATIENCE)
        mac = Path(f"/sys/class/net/{NIC}/address").read_text().strip()
        peer_mac = self._wire.getsockname()[4].hex(":")
        ip(f"neigh replace {stranger} lladdr {peer_mac} dev {NIC} nud permanent")
        self.ether = Ether(src=peer_mac, dst=mac)
        self.ip = IPv6(src=stranger, dst=own) if self.ipv6 else IP(src=stranger, dst=own)
        with socket.create_server((own, 0), family=family) as listener:
            port = listener.getsockname()[1]
            self.tcp = TCP(sport=next(_PORTS), dport=port, seq=1000, window=65535)
            self.send([self.frame(flags="S")])
            answer = self._answer()
            self.tcp.seq, self.tcp.ack = 1001, answer.seq + 1
            self.send([self.frame(flags="A")])
            self.sock, _address = listener.accept()
        self.port = RingPort(NIC, tx_slots=256, rx_slots=256)
        self.port.attach(self.sock)

    def close(self) -> None:
        self.send([self.frame(flags="R")])
        self.port.close()
        self.sock.close()
        self._wire.close()

    def _answer(self) -> TCP:
        while True:
            frame = Ether(self._wire.recv(2048))
            if TCP in frame and frame[TCP].dport == self.tcp.sport and frame[TCP].flags == "SA":
                answer: TCP = frame[TCP]
                return answer

    def frame(self, payload: bytes = b"", flags: str = "PA", **fields: int) -> Ether:
        """A frame of the connection, whose bytes are complete but for the changes to come."""
        tcp = self.tcp.copy()
        tcp.flags = flags
        for name, value in fields.items():
            setattr(tcp, name, value)
        frame: Ether = self.ether / self.ip / tcp / payload
        return frame

    def send(self, frames: Sequence[Ether | bytes]) -> None:
        for frame in frames:
            self._wire.send(bytes(frame))

    def tell(self, frames: Sequence[Ether | bytes]) -> None:
        """Send these frames of the payload, then it as it should be, then one byte more."""
        self.send([*frames, self.frame(PAYLOAD)])
        self.tcp.seq += len(PAYLOAD)
        self.send([self.frame(b"!")])
        self.tcp.seq += 1

    def hear(self) -> None:
        """Receive what :meth:`tell` has told, once."""
        heard = b""
        deadline = time.monotonic() + PATIENCE
        while len(heard) <= len(PAYLOAD) and time.monotonic() < deadline:
            for segment in self.port.exchange(0.1):
                heard += bytes(segment.view)
        assert heard == PAYLOAD + b"!"


def _with(frame: Ether, layer: type, **fields: object) -> Ether:
    """The frame with other fields, its checksums as they were before."""
    built = Ether(bytes(frame))
    for name, value in fields.items():
        setattr(built[layer], name, value)
    return built


def _sum(frame: Ether) -> Ether:
    """The frame with a wrong checksum of TCP."""
    built = Ether(bytes(frame))
    built[TCP].chksum ^= 0x5555
    return built


def _ip4(crafted: Crafted, **fields: object) -> Ether:
    """A frame whose IP header has these fields, and a checksum that fits."""
    frame = crafted.frame(PAYLOAD)
    for name, value in fields.items():
        setattr(frame[IP], name, value)
    return frame


def _fragments(crafted: Crafted) -> list[Ether]:
    whole = crafted.frame(PAYLOAD)[IP]
    return [crafted.ether / part for part in IP(bytes(whole)).fragment(24)]  # type: ignore[no-untyped-call]


def _tagged(crafted: Crafted, vlan: int) -> Ether:
    frame: Ether = crafted.ether / Dot1Q(vlan=vlan) / crafted.frame(PAYLOAD)[Ether].payload
    return frame


#: Odd frames of either family, by name.
ODD: dict[str, Odd] = {
    "nothing odd": lambda _c: [],
    "twice the same": lambda c: [c.frame(PAYLOAD)],
    "padding": lambda c: [bytes(c.frame(PAYLOAD)) + bytes(range(1, 10))],
    "a wrong TCP checksum": lambda c: [_sum(c.frame(PAYLOAD))],
    "a TCP header too short": lambda c: [c.frame(PAYLOAD, dataofs=4)],
    "a TCP header too long": lambda c: [c.frame(PAYLOAD, dataofs=15)],
    "a sequence number beyond": lambda c: [c.frame(PAYLOAD, seq=c.tcp.seq + (1 << 30))],
    "the bit SYN": lambda c: [c.frame(PAYLOAD, flags="SA")],
    "another host's address": lambda c: [_with(c.frame(PAYLOAD), Ether, dst="02:00:00:00:00:77")],
    "the address of all hosts": lambda c: [_with(c.frame(PAYLOAD), Ether, dst="ff:ff:ff:ff:ff:ff")],
    "a tag of a VLAN": lambda c: [_tagged(c, 7)],
    "a tag with a priority": lambda c: [_tagged(c, 0)],
    "a frame cut off": lambda c: [bytes(c.frame(PAYLOAD))[:-8]],
    "a frame of headers cut off": lambda c: [bytes(c.frame())[:-8]],
}

ODD4: dict[str, Odd] = {
    "congestion": lambda c: [_ip4(c, tos=3)],
    "options of IP": lambda c: [_ip4(c, options=[IPOption(b"\x01\x01\x01\x01")])],
    "a wrong IP checksum": lambda c: [
        _with(c.frame(PAYLOAD), IP, chksum=IP(bytes(c.frame(PAYLOAD)[IP])).chksum ^ 1)
    ],
    "a length too large": lambda c: [_ip4(c, len=20 + 20 + len(PAYLOAD) + 8)],
    "a length too small": lambda c: [_ip4(c, len=30)],
    "a length of nothing": lambda c: [_ip4(c, len=0)],
    "another version": lambda c: [_ip4(c, version=5)],
    "an IP header too short": lambda c: [_ip4(c, ihl=4)],
    "fragments": _fragments,
}

ODD6: dict[str, Odd] = {
    "congestion": lambda c: [_with(c.frame(PAYLOAD), IPv6, tc=3)],
    "options for each hop": lambda c: [_extended(c, IPv6ExtHdrHopByHop(options=[PadN()]))],
    "options for the destination": lambda c: [_extended(c, IPv6ExtHdrDestOpt(options=[PadN()]))],
    "a single fragment": lambda c: [_extended(c, IPv6ExtHdrFragment(id=7))],
    "a length too large": lambda c: [_with(c.frame(PAYLOAD), IPv6, plen=20 + 24 + 8)],
    "a length too small": lambda c: [_with(c.frame(PAYLOAD), IPv6, plen=10)],
    "a length of nothing": lambda c: [_with(c.frame(PAYLOAD), IPv6, plen=0)],
    "another version": lambda c: [_with(c.frame(PAYLOAD), IPv6, version=5)],
}

#: These frames are IP's in order, and TCP gets them directly.
IN_ORDER_FOR_IP = {
    *("twice the same", "padding", "a wrong TCP checksum", "a TCP header too short"),
    *("a TCP header too long", "a sequence number beyond", "the bit SYN", "congestion"),
}


def _extended(crafted: Crafted, header: Packet) -> Ether:
    tcp = crafted.frame(PAYLOAD)[TCP]
    frame: Ether = crafted.ether / crafted.ip / header / tcp
    return frame


def input_counters(ipv6: bool) -> dict[str, int]:
    """What the system counts of packets that come in: the device, IP of the family, TCP."""
    found: dict[str, int] = {}
    for file in ("snmp", "netstat"):
        rows = Path(f"/proc/net/{file}").read_text().splitlines()
        for names, values in zip(rows[::2], rows[1::2], strict=True):
            layer = names.split(":")[0]
            for name, value in zip(names.split()[1:], values.split()[1:], strict=True):
                found[layer + name] = int(value)
    for place, file in (("", "snmp6"), (NIC, f"dev_snmp6/{NIC}")):
        for line in Path(f"/proc/net/{file}").read_text().splitlines():
            name, value, *_ = line.split()
            found[place + name] = int(value)
    device = Path(f"/sys/class/net/{NIC}/statistics")
    for file in ("rx_packets", "rx_bytes", "rx_dropped", "rx_errors"):
        found[file] = int((device / file).read_text())
    family = f"({NIC})?Ip6(In|Reasm|\\w*Pkts)" if ipv6 else "Ip(Ext)?(In|Reasm)"
    wanted = (
        f"{family}|TcpIn|rx_|TcpExtTCP(HPHits|PureAcks|DSACK|OFO|SYNChallenge|Challenge"
        "|Delivered|Rcv|Backlog|ReqQ)"
    )
    return {name: value for name, value in found.items() if re.match(wanted, name)}


def _told(crafted: Crafted, odd: Odd) -> dict[str, int]:
    """Have these frames told; return what was counted, with what came directly."""
    frames = odd(crafted)
    before = input_counters(crafted.ipv6) | {
        "direct": crafted.port.stats().direct_received,
    }
    crafted.tell(frames)
    crafted.hear()
    after = input_counters(crafted.ipv6) | {"direct": crafted.port.stats().direct_received}
    return {name: after[name] - before[name] for name in before}


CASES = [
    pytest.param(family, name, id=f"{'IPv6' if family == socket.AF_INET6 else 'IPv4'}-{name}")
    for family, odd in ((socket.AF_INET, ODD | ODD4), (socket.AF_INET6, ODD | ODD6))
    for name in odd
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_odd_packets_do_what_they_do_in_ip(family: int, name: str) -> None:
    """The stream is the same and all is counted alike, whichever way the others come."""
    odd = (ODD | (ODD6 if family == socket.AF_INET6 else ODD4))[name]
    for _attempt in range(3):  # something else may come from the wire meanwhile
        with contextlib.closing(Crafted(family)) as crafted:
            directly = _told(crafted, odd)
        with prerouting("accept"), contextlib.closing(Crafted(family)) as crafted:
            by_ip = _told(crafted, odd)
        assert directly.pop("direct") == 2 + (name in IN_ORDER_FOR_IP)
        assert by_ip.pop("direct") == 0
        if directly == by_ip:
            return
    assert directly == by_ip


def test_each_packet_is_counted(lines: Lines) -> None:
    """The counter is that of the packets which came, and so is IP's."""
    before = input_counters(lines.ipv6)
    direct = sum(lines.listen() for _ in range(50))
    after = input_counters(lines.ipv6)
    family = "Ip6" if lines.ipv6 else "Ip"
    assert direct == 100
    for name in ("TcpInSegs", f"{family}InReceives", f"{family}InDelivers", "rx_packets"):
        # Neighbours are asked for and confirmed meanwhile.
        assert 0 <= after[name] - before[name] - direct <= 8, name


# -- what may want packets -------------------------------------------------------------------


def policy(lines: Lines) -> AbstractContextManager[None]:
    own, peer = (ADDRESS6, PEER_ADDRESS6) if lines.ipv6 else (ADDRESS, PEER_ADDRESS)
    return obstacles.policy(peer, own, "in")


def address(lines: Lines) -> AbstractContextManager[None]:
    """The host has lost the address."""
    own = f"{ADDRESS6}/64" if lines.ipv6 else f"{ADDRESS}/24"
    return set_and_unset(
        f"ip addr del {own} dev {NIC}",
        f"ip addr add {own} dev {NIC}",
    )


def route(lines: Lines) -> AbstractContextManager[None]:
    """The address is the host's still, but its route is not there."""
    own = ADDRESS6 if lines.ipv6 else ADDRESS
    command, local = (
        f"ip {'-6' if lines.ipv6 else '-4'} route",
        f"local {own} dev {NIC} table local",
    )
    return set_and_unset(
        f"{command} del {local}",
        f"{command} add {local} proto kernel {'metric 0' if lines.ipv6 else f'src {own}'}",
    )


@contextlib.contextmanager
def least_ttl(lines: Lines) -> Iterator[None]:
    level, name = (socket.IPPROTO_IPV6, 73) if lines.ipv6 else (socket.IPPROTO_IP, 21)
    for sock in lines.socks:
        sock.setsockopt(level, name, 255)
    yield
    for sock in lines.socks:
        sock.setsockopt(level, name, 0)


@contextlib.contextmanager
def socket_filter(lines: Lines) -> Iterator[None]:
    nothing = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0))  # ret 0
    program = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(nothing))
    for sock in lines.socks:
        sock.setsockopt(socket.SOL_SOCKET, 26, program)
    yield
    for sock in lines.socks:
        sock.setsockopt(socket.SOL_SOCKET, 27, 0)


#: What stops packets while it is there.
STOPS: dict[str, Obstacle] = {
    "a rule before routing": lambda _lines: prerouting("drop"),
    "a rule for input": lambda _lines: input_("drop"),
    "a policy of IPsec": policy,
    "the address is gone": address,
    "the route is gone": route,
    "a least TTL": least_ttl,
}

#: The same, of whichever family the packets are.
STOPS_ANY: dict[str, Obstacle] = {
    "a rule for the device": lambda _lines: device_rule("ingress"),
    "a filter of tc": lambda _lines: tc_filter("ingress", "drop"),
    "a program of the cgroup": lambda _lines: drop_all_that_comes(),
    "a program of XDP": lambda _lines: xdp_drops_all(NIC),
    "a filter of the socket": socket_filter,
}


@pytest.mark.parametrize("obstacle", STOPS)
def test_what_stops_packets_stops_these(lines: Lines, obstacle: str) -> None:
    is_stopped_by(STOPS[obstacle], lines)


@pytest.mark.parametrize("obstacle", STOPS_ANY)
@pytest.mark.parametrize("lines", FAMILIES[:1], indirect=True)
def test_what_stops_packets_of_any_family_stops_these(lines: Lines, obstacle: str) -> None:
    is_stopped_by(STOPS_ANY[obstacle], lines)


def is_stopped_by(obstacle: Obstacle, lines: Lines) -> None:
    """Nothing is heard while the obstacle is there; then all is, and directly again."""
    with obstacle(lines):
        lines.tell()
        lines.hear_nothing()
    lines.tell()
    lines.hear()
    lines.hear_directly()


def setting(name: str) -> AbstractContextManager[None]:
    return set_and_unset(f"sysctl -qw net.ipv4.{name}=0", f"sysctl -qw net.ipv4.{name}=1")


@contextlib.contextmanager
def another_tap(_lines: Lines) -> Iterator[None]:
    """A packet socket of another protocol, ARP."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)):
        yield


#: What lets packets pass, but wants to see them, or may.
SEES: dict[str, Obstacle] = {
    "a rule before routing": lambda _lines: prerouting("accept"),
    "a rule for input": lambda _lines: input_("accept"),
    "a packet socket": another_tap,
    "a look-up for each packet": lambda _lines: setting("ip_early_demux"),
    "a look-up for each packet of TCP": lambda _lines: setting("tcp_early_demux"),
}


@pytest.mark.parametrize("obstacle", SEES)
def test_what_sees_packets_sees_these(lines: Lines, obstacle: str) -> None:
    with SEES[obstacle](lines):
        assert lines.listen() == 0
        if "rule" in obstacle:
            assert counted() >= len(lines.peers)
    assert lines.listen() >= 2


def test_a_filter_of_tc_lets_packets_pass_directly(lines: Lines) -> None:
    with tc_filter("ingress", "pass"):
        assert lines.listen() >= 2


@pytest.mark.parametrize("bound", [True, False], ids=["of the device", "of all devices"])
@pytest.mark.parametrize("protocol", ["all", "IP"])
def test_a_tap_sees_each_packet(lines: Lines, protocol: str, bound: bool) -> None:
    number = 3 if protocol == "all" else 0x86DD if lines.ipv6 else 0x0800
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(number))
    with tap:
        if bound:
            tap.bind((NIC, number))
        tap.settimeout(PATIENCE)
        lines.listen()
        seen = 0
        while seen < len(lines.peers):
            data, (name, _protocol, direction, *_rest) = tap.recvfrom(2048)
            frame = Ether(data)
            comes = name == NIC and direction == socket.PACKET_HOST
            seen += comes and TCP in frame and len(frame[TCP].payload) == SIZE
    assert lines.listen() >= 2


def test_a_raw_socket_sees_each_packet(lines: Lines) -> None:
    with socket.socket(lines.family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.settimeout(PATIENCE)
        assert lines.listen() == 0
        seen = 0
        while seen < len(lines.peers):
            data = raw.recv(2048)
            segment = TCP(data) if lines.ipv6 else IP(data)[TCP]
            seen += len(segment.payload) == SIZE
    assert lines.listen() >= 2


# -- who has the device's handler ------------------------------------------------------------


def _joins_bridge() -> bool:
    command = ["ip", "link", "set", NIC, "master", "b0"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_nic_in_use_joins_no_bridge() -> None:
    """While a port has sockets the kernel says that the NIC is busy; else it is not."""
    with set_and_unset("modprobe -q bridge; ip link add b0 type bridge", "ip link del b0"):
        with RingPort(NIC) as port:
            assert _joins_bridge()
            sh(f"ip link set {NIC} nomaster")
            peer, sock = connect_pair()
            port.attach(sock)
            assert not _joins_bridge()
        peer.close()
        sock.close()
        assert _joins_bridge()
        sh(f"ip link set {NIC} nomaster")


def test_a_nic_of_a_bridge_goes_on_as_part_of_it() -> None:
    """Its handler stays the bridge's when a port of the NIC gets sockets, and when it closes."""
    one, other = socket.socketpair()
    peer, sock = connect_pair()
    with (
        one,
        other,
        set_and_unset("modprobe -q bridge; ip link add b0 type bridge", "ip link del b0"),
    ):
        assert _joins_bridge()
        with RingPort(NIC) as port:
            port.attach(sock)
            sh(f"ip link set {NIC} nomaster")
            peer.sendall(b"by IP")
            heard = b""
            while heard != b"by IP":
                for segment in port.exchange(PATIENCE):
                    heard += bytes(segment.view)
            assert port.stats().direct_received == 0
            assert _joins_bridge()
        sh(f"ip link set {NIC} nomaster")
        peer.close()
        sock.close()


# -- changes of the way ----------------------------------------------------------------------


@contextlib.contextmanager
def _unbound() -> Iterator[None]:
    with set_and_unset(f"tc qdisc del dev {NIC} root", f"tc qdisc replace dev {NIC} root stackmap"):
        yield


CHANGES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "a rule comes and goes": lambda: input_("accept"),
    "the NIC is unbound and bound": _unbound,
}


@pytest.mark.parametrize("change", CHANGES)
def test_streams_survive_changes_of_the_way(change: str) -> None:
    """Packets come one way and the other, in turns, under load."""
    over = threading.Event()
    changes = 0

    def keep_changing() -> None:
        nonlocal changes
        while not over.wait(0.01):
            with CHANGES[change]():
                time.sleep(0.02)
            changes += 1

    with RingPort(NIC) as port:
        pairs = [connect_pair(family) for family in (socket.AF_INET, socket.AF_INET6) * 2]
        lines = [(port.attach(sock), peer) for peer, sock in pairs]
        thread = threading.Thread(target=keep_changing)
        thread.start()
        try:
            while changes < 8:
                carry(port, lines, 500_000)
        finally:
            over.set()
            thread.join()
        assert port.stats().direct_received > 0
        for peer, sock in pairs:
            peer.close()
            sock.close()


def test_a_detached_socket_gets_what_comes_by_ip(lines: Lines) -> None:
    for connection in lines.connections:
        lines.port.detach(connection)
    before = lines.direct
    for sock, peer in zip(lines.socks, lines.peers, strict=True):
        peer.sendall(b"by the socket")
        assert receive_exactly(sock, 13) == b"by the socket"
    assert lines.direct == before


def test_sockets_that_are_attached_and_detached_lose_nothing() -> None:
    """A peer sends on while its socket is attached and detached, in turns."""
    size = 4_000_000
    content = bytes(range(251)) * (size // 251)
    peer, sock = connect_pair()
    thread = threading.Thread(target=peer.sendall, args=(content,))
    heard = b""
    direct = 0
    with peer, sock, RingPort(NIC) as port:
        thread.start()
        while len(heard) < len(content):
            connection = port.attach(sock)
            for _ in range(20):
                heard += b"".join(bytes(s.view) for s in port.exchange(0.01))
            port.detach(connection)
            closed = False
            while not closed:
                for segment in port.exchange(PATIENCE):
                    closed |= bool(segment.event)
                    heard += bytes(segment.view) if not segment.event else b""
            direct = port.stats().direct_received
            with contextlib.suppress(BlockingIOError):
                heard += sock.recv(1 << 16, socket.MSG_DONTWAIT)
        thread.join()
    assert heard == content
    assert direct > 0


def test_packets_come_by_ip_while_the_nic_is_not_bound(lines: Lines) -> None:
    with _unbound():
        assert lines.listen() == 0
    assert lines.listen() >= 2


@pytest.mark.parametrize("lines", FAMILIES[:1], indirect=True)
def test_a_nic_that_was_down_brings_packets_directly_again(lines: Lines) -> None:
    up = f"ip link set {NIC} up; ip addr replace {ADDRESS6}/64 dev {NIC}"
    with set_and_unset(f"ip link set {NIC} down", up):
        lines.tell()
        lines.hear_nothing()
    lines.hear()
    lines.hear_directly()
