"""Netlink's answers agree with the ports and with ``ss``, also while these change."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from pyroute2.netlink import NETLINK_GENERIC, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE

from stackmap import DEVICE
from stackmap.inspect import CONN_GET, ConnectionInfo, ConnMessage, Inspector, PortInfo
from stackmap_cli.main import main
from tests.guest.partial_slot import peer_is_full
from tests.guest.peer import inside
from tests.guest.raw import CLOSED, REGISTER_SIZE, SMIOC_ATTACH, RawPort, register
from tests.guest.wire import ADDRESS, NIC, PEER_NAMESPACE, connect_pair, connect_pair_from_here
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.attached import Attached

NETLINK_HEADER = struct.Struct("=IHHII")
#: Many times what fits into a message of a dump.
MANY = 2000
#: Bytes; the kernel makes messages no longer than those that are asked for.
MESSAGE = 8192


@pytest.fixture
def inspector() -> Iterator[Inspector]:
    with Inspector() as inspector:
        yield inspector


def the_port(inspector: Inspector) -> PortInfo:
    (found,) = inspector.ports()
    return found


def the_connection(inspector: Inspector, id: int) -> ConnectionInfo:
    (found,) = [connection for connection in inspector.connections() if connection.id == id]
    return found


def test_a_port_is_there_while_it_is_open(inspector: Inspector) -> None:
    assert inspector.ports() == inspector.rings() == inspector.connections() == []
    with RawPort(tx_slots=64, rx_slots=128) as port:
        found = the_port(inspector)
        assert (found.mem_id, found.name) == (port.mem_id, f"tcp:{NIC}")
        assert found.ifindex == socket.if_nametoindex(NIC)
        assert (found.pid, found.uid) == (os.getpid(), os.getuid())
        assert (found.rings, found.tx_slots, found.rx_slots) == (1, 64, 128)
        assert (found.bufs_pinned, found.counters.connections) == (0, 0)
        # Every buffer is spare or in a ring.
        assert found.bufs_free == found.bufs - 64 - 128
        with RawPort() as other:
            assert {p.mem_id for p in inspector.ports()} == {port.mem_id, other.mem_id}
    assert inspector.ports() == inspector.rings() == []


def test_counters_are_those_of_the_port(inspector: Inspector, two: Attached) -> None:
    port = two.port
    port.send(two.id, b"x" * 1000)
    two.peer.sendall(b"y" * 2000)
    got = 0
    while got < 2000:
        got += sum(len(payload) for _id, payload, _events, _err in port.receive())
    port.put(port.tx.head, 4_000_000_000, b"to nobody")
    port.tx.set_head((port.tx.head + 1) % port.tx.n)
    port.sync()
    assert receive_exactly(two.peer, 1000) == b"x" * 1000
    while port.stats()["pinned"]:
        port.sync()

    found, own = the_port(inspector), port.stats()
    assert found.bufs_pinned == own.pop("pinned")
    assert found.bufs_free == own.pop("bufs_free")
    names = {
        "released_ack": "slots_released_ack",
        "released_reset": "slots_released_reset",
        "again": "slots_again",
        "stalls": "ring_stalls",
    }
    assert {name: getattr(found.counters, names.get(name, name)) for name in own} == own
    assert own["tx_bytes"] == 1000
    assert own["rx_bytes"] == 2000
    assert own["unknown_conn"] == 1
    (ring,) = inspector.rings()
    assert (ring.mem_id, ring.index) == (port.mem_id, 0)
    assert ring.counters == found.counters
    assert ring.cpu in os.sched_getaffinity(0)
    assert (ring.rx_filled, ring.tx_stalled) == (0, False)


def test_each_ring_counts_for_itself(inspector: Inspector) -> None:
    port = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        body = bytearray(REGISTER_SIZE)
        struct.pack_into("<HH", body, 24, 3, 3)
        register(port, f"tcp:{NIC}", body)
        fcntl.ioctl(port, SMIOC_ATTACH, struct.pack("<iIIIII", sock.fileno(), 0, 2, 0, 0, 0))
        assert the_port(inspector).rings == 3
        assert the_port(inspector).counters.connections == 1
        found = {ring.index: ring.counters.connections for ring in inspector.rings()}
        assert found == {0: 0, 1: 0, 2: 1}
        assert [connection.ring for connection in inspector.connections()] == [2]
        heading, *_counters, last = cli("stats").splitlines()
        assert heading.split()[-7:] == ["ALL", "RING", "0", "RING", "1", "RING", "2"]
        assert last.split() == ["connections", "1", "0", "0", "1"]
        os.close(port)


def ss() -> dict[int, tuple[str, str, str]]:
    """TCP connections as ``ss`` shows them, by inode."""
    done = subprocess.run(["ss", "-Htane"], stdout=subprocess.PIPE, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        state, _recv, _send, local, peer, *more = line.split()
        inode = next(word for word in more if word.startswith("ino:"))
        found[int(inode.removeprefix("ino:"))] = (state, local, peer)
    return found


def cli(*arguments: str) -> str:
    """A command's output; it runs in this process, because an emulated machine starts slowly."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_connections_are_those_of_ss(inspector: Inspector, port: RawPort) -> None:
    with ExitStack() as stack:
        pairs = [connect_pair(), connect_pair(), connect_pair_from_here(socket.AF_INET6)]
        for sock in [sock for pair in pairs for sock in pair]:
            stack.enter_context(closing(sock))
        ids = {port.attach(sock): os.fstat(sock.fileno()).st_ino for _peer, sock in pairs}
        pairs[1][0].shutdown(socket.SHUT_WR)
        while not any(events for _id, _payload, events, _err in port.receive()):
            pass

        theirs = ss()
        found = inspector.connections()
        assert {(c.mem_id, c.id, c.ring, c.inode) for c in found} == {
            (port.mem_id, id, 0, inode) for id, inode in ids.items()
        }
        table = {int(line.split()[3]): line.split() for line in cli("conns").splitlines()[1:]}
        assert len(table) == len(found)
        for connection in found:
            state, local, peer = theirs[connection.inode]
            assert connection.state == state
            assert table[connection.inode][4:7] == [state, local, peer]
            assert not any((connection.paused, connection.blocked, connection.leaving))
            assert (connection.bufs_pinned, connection.bytes_pinned, connection.rest) == (0, 0, 0)
        assert {c.state for c in found} == {"ESTAB", "CLOSE-WAIT"}
        assert {c.local for c in found} >= {ADDRESS, pairs[2][1].getsockname()[0]}


def test_waiting_data_is_shown(inspector: Inspector, two: Attached) -> None:
    """A peer that does not read: its connection is blocked, and what it pins can be seen."""
    port = two.port
    before = the_connection(inspector, two.id)
    assert (before.bufs_pinned, before.paused, before.blocked) == (0, False, False)
    sent = 0
    # no ACK may come later and unblock it
    while not (peer_is_full(two.sock) and the_connection(inspector, two.id).blocked):
        i = port.tx.head
        port.put(i, two.id, b"z" * 4096)
        port.tx.set_head((i + 1) % port.tx.n)
        port.sync()
        sent += 4096 * (not port.tx.slot(i).events)
    port.pause(two.id)
    found = the_connection(inspector, two.id)
    assert found.paused
    assert 0 < found.bytes_pinned <= 4096 * found.bufs_pinned
    assert found.rest < 4096
    # At rest: ACKs may have been under way.  The rest of a slot holds its buffer a second time.
    pinned = -1
    while pinned != (pinned := the_port(inspector).bufs_pinned):
        found = the_connection(inspector, two.id)
    assert found.bufs_pinned > 0
    assert found.bufs_pinned - pinned in (0, 1)
    assert the_connection(inspector, two.honest).bufs_pinned == 0

    port.pause(two.id, 0)
    taken = 0
    while taken < sent:
        taken += len(two.peer.recv(sent - taken))
    while (found := the_connection(inspector, two.id)).bufs_pinned or found.blocked:
        port.receive()
    assert (found.bytes_pinned, found.rest, found.paused) == (0, 0, False)


def test_leaving_connections_are_shown_until_closed(inspector: Inspector, two: Attached) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        id = two.port.attach(sock)
        two.port.detach(id)
        assert the_connection(inspector, id).leaving
        while not any(events & CLOSED for _id, _payload, events, _err in two.port.receive()):
            pass
        assert id not in {connection.id for connection in inspector.connections()}
        assert the_port(inspector).counters.connections == 2


def test_each_namespace_shows_its_own(inspector: Inspector, port: RawPort) -> None:
    with inside(PEER_NAMESPACE):
        elsewhere = Inspector()
    with elsewhere:
        assert elsewhere.ports() == elsewhere.rings() == elsewhere.connections() == []
        with inside(PEER_NAMESPACE):
            subprocess.run(["tc", "qdisc", "replace", "dev", NIC, "root", "stackmap"], check=True)
        try:
            with inside(PEER_NAMESPACE):
                other = RawPort()
            with other:
                assert [p.mem_id for p in elsewhere.ports()] == [other.mem_id]
                assert [p.mem_id for p in inspector.ports()] == [port.mem_id]
        finally:
            with inside(PEER_NAMESPACE):
                subprocess.run(["tc", "qdisc", "del", "dev", NIC, "root"], check=True)


def test_the_nic_may_be_unbound(inspector: Inspector) -> None:
    with RawPort():
        subprocess.run(["tc", "qdisc", "del", "dev", NIC, "root"], check=True)
        try:
            assert the_port(inspector).ifindex is None
            assert "No NIC is bound." in cli("ports")
            assert "(no longer bound)" in cli("ports")
        finally:
            subprocess.run(["tc", "qdisc", "replace", "dev", NIC, "root", "stackmap"], check=True)


def test_a_binding_that_somebody_takes_away_is_shown(inspector: Inspector) -> None:
    """As network managers do."""
    with RawPort():
        subprocess.run(["tc", "qdisc", "replace", "dev", NIC, "root", "pfifo"], check=True)
        try:
            taken = f"tcp:{NIC} (no longer bound: its qdisc is pfifo now)"
            assert taken in cli("ports")
            assert taken in cli("stats")
        finally:
            subprocess.run(["tc", "qdisc", "replace", "dev", NIC, "root", "stackmap"], check=True)


def test_commands(port: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        id = port.attach(sock)
        port.send(id, b"counted")
        text = cli("ports")
        assert f"{NIC} is bound: only root may open ports on it." in text
        assert f"tcp:{NIC}" in text
        answer = json.loads(cli("ports", "--json"))
        assert [nic["name"] for nic in answer["nics"]] == [NIC]
        assert [p["mem_id"] for p in answer["ports"]] == [port.mem_id]
        assert [c["id"] for c in json.loads(cli("conns", "--json"))] == [id]
        (counted,) = json.loads(cli("stats", "--json"))
        assert counted["counters"]["tx_bytes"] == len(b"counted")
        assert [ring["index"] for ring in counted["rings"]] == [0]
        assert ["tx-bytes", "7"] in [line.split() for line in cli("stats").splitlines()]


# -- many connections, and what changes during a dump --


class Dump:
    """A dump of connections, message by message."""

    def __init__(self, inspector: Inspector) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self._sock.bind((0, 0))
        flags = NLM_F_REQUEST | NLM_F_DUMP
        header = NETLINK_HEADER.pack(20, inspector.prid, flags, 1, 0)
        self._sock.send(header + struct.pack("=BBH", CONN_GET, 1, 0))
        self.messages = 0

    def step(self) -> list[int] | None:
        """The ids of the next message; None at the end."""
        data = self._sock.recv(MESSAGE)
        self.messages += 1
        ids: list[int] = []
        offset = 0
        while offset < len(data):
            length, kind, *_rest = NETLINK_HEADER.unpack_from(data, offset)
            if kind == NLMSG_DONE:
                self._sock.close()
                return None
            message = ConnMessage(data, offset=offset)
            message.decode()
            ids.append(message.get_attr("SM_A_CONN_ID"))
            offset += (length + 3) & ~3
        return ids

    def rest(self) -> list[int]:
        """The ids of all messages that are left."""
        ids: list[int] = []
        while (more := self.step()) is not None:
            ids += more
        return ids


class Crowd:
    """A port with many connections."""

    def __init__(self, stack: ExitStack) -> None:
        self.port = stack.enter_context(RawPort())
        listener = stack.enter_context(socket.create_server((ADDRESS, 0), backlog=1024))
        with inside(PEER_NAMESPACE):
            peers = [stack.enter_context(socket.socket()) for _ in range(MANY)]
        self.socks: dict[int, socket.socket] = {}
        for peer in peers:
            peer.connect(listener.getsockname())
            sock = stack.enter_context(listener.accept()[0])
            self.socks[self.port.attach(sock)] = sock


@pytest.mark.long
def test_many_connections(inspector: Inspector) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * MANY, 3 * MANY))
    with ExitStack() as stack:
        crowd = Crowd(stack)
        port, ids = crowd.port, sorted(crowd.socks)
        dump = Dump(inspector)
        assert dump.rest() == ids
        assert dump.messages > 10

        # Connections that close during a dump may be in it or not; all others are in it once.
        dump = Dump(inspector)
        seen = dump.step()
        assert seen
        gone = set(ids[1::2])
        for id in gone:
            crowd.socks[id].close()
        left = set(gone)
        while left:
            left -= {id for id, _payload, events, _err in port.receive() if events & CLOSED}
        new = set()
        for _ in range(10):
            _peer, sock = [stack.enter_context(end) for end in connect_pair()]
            new.add(port.attach(sock))
        seen += dump.rest()
        assert len(seen) == len(set(seen))
        assert set(ids) - gone <= set(seen) <= set(ids) | new
        assert not gone & set(seen[len(seen) // 2 :])

        # A port that closes takes its connections out of the dump.
        dump = Dump(inspector)
        assert dump.step()
        stack.close()
    assert len(dump.rest()) < MANY // 20, "more than the message that was waiting already"


def test_dumps_while_ports_come_and_go(inspector: Inspector) -> None:
    """Dumps that walk over what is being taken apart; the kernel's log is the judge."""
    stop = threading.Event()
    seen: dict[str, set[Any]] = {"ports": set(), "rings": set(), "conns": set()}

    def look() -> None:
        with Inspector() as own:
            while not stop.is_set():
                seen["conns"].update((c.mem_id, c.id) for c in own.connections())
                seen["ports"].update(p.mem_id for p in own.ports())
                seen["rings"].update(r.mem_id for r in own.rings())

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    opened = set()
    try:
        for _ in range(25):
            with RawPort(tx_slots=16, rx_slots=16) as port:
                opened.add(port.mem_id)
                for peer, sock in [connect_pair(), connect_pair()]:
                    with closing(peer), closing(sock):
                        port.send(port.attach(sock), b"on its way")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen["ports"]
    assert seen["ports"] <= opened
    assert seen["rings"] <= opened
    assert {mem_id for mem_id, _id in seen["conns"]} <= opened
    assert inspector.ports() == []
