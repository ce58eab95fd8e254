"""A NIC with several queues: each has its own FIFO, and syncs poll where connections receive."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.guest.commands import sh
from tests.guest.peer import inside
from tests.guest.raw import SYNC_POLL, SYNC_RX, SYNC_TX, RawPort
from tests.guest.tracing import traced
from tests.guest.wire import PEER_NAMESPACE
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

NIC, ADDRESS, PEER_ADDRESS = "smq", "10.80.0.1", "10.80.0.2"
QUEUES = 4
#: So many that all of them in one queue would be a miracle.
CONNECTIONS = 24
SO_INCOMING_NAPI_ID = 56
_POLLED = re.compile(rf"-(\d+) .* napi_poll: .* struct (\w+) for device {NIC} ")


@pytest.fixture
def queues() -> Iterator[None]:
    """A bound NIC that has several queues, and a NAPI context for each."""
    many = f"numtxqueues {QUEUES} numrxqueues {QUEUES}"
    sh(f"""
        ip link add {NIC} {many} type veth peer name {NIC} netns {PEER_NAMESPACE} {many}
        ip addr add {ADDRESS}/24 dev {NIC}
        ip link set {NIC} up
        ethtool -K {NIC} gro on
        ip -n {PEER_NAMESPACE} addr add {PEER_ADDRESS}/24 dev {NIC}
        ip -n {PEER_NAMESPACE} link set {NIC} up
        ip netns exec {PEER_NAMESPACE} ethtool -K {NIC} tso off
        tc qdisc replace dev {NIC} root stackmap
    """)
    yield
    sh(f"ip link del {NIC}")


@pytest.fixture
def connections(queues: None) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Connections, each with the peer's socket first; the peer has sent on all of them."""
    with ExitStack() as stack:
        pairs = []
        listener = stack.enter_context(socket.create_server((ADDRESS, 0)))
        for _ in range(CONNECTIONS):
            with inside(PEER_NAMESPACE):
                peer = stack.enter_context(socket.create_connection(listener.getsockname()))
            sock = stack.enter_context(closing(listener.accept()[0]))
            peer.sendall(b"x")
            assert sock.recv(1) == b"x"
            pairs.append((peer, sock))
        yield pairs


def qdiscs() -> list[dict[str, Any]]:
    """The NIC's queueing disciplines, as ``tc`` shows them: the root comes first."""
    shown = subprocess.run(
        ["tc", "-s", "-j", "qdisc", "show", "dev", NIC], stdout=subprocess.PIPE, check=True
    )
    found: list[dict[str, Any]] = json.loads(shown.stdout)
    return sorted(found, key=lambda qdisc: "root" not in qdisc)


def napi_id(sock: socket.socket) -> int:
    """The NAPI context that the socket receives from."""
    return sock.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID)


def polled_by(port: RawPort) -> set[str]:
    """The NAPI contexts that one sync of an idle port polls."""
    port.sync(SYNC_RX)  # attaching has left the port something to look at, which ends a poll
    with traced("napi/napi_poll") as trace:
        port.sync(SYNC_RX | SYNC_POLL, spin_us=100)
        ours = str(os.getpid())
        return {struct for pid, struct in _POLLED.findall(trace()) if pid == ours}


@pytest.mark.usefixtures("queues")
def test_each_queue_has_its_fifo() -> None:
    """``tc`` shows the binding and one FIFO for each queue in use, however many there are."""
    root, *fifos = qdiscs()
    assert root["kind"] == "stackmap"
    assert [fifo["kind"] for fifo in fifos] == ["stackmap_queue"] * QUEUES
    sh(f"ethtool -L {NIC} tx {QUEUES // 2}")
    assert len(qdiscs()) == 1 + QUEUES // 2
    sh(f"ethtool -L {NIC} tx {QUEUES}")
    assert len(qdiscs()) == 1 + QUEUES


@pytest.mark.usefixtures("queues")
def test_the_fifo_of_a_queue_is_not_replaced() -> None:
    root = qdiscs()[0]
    done = subprocess.run(
        ["tc", "qdisc", "replace", "dev", NIC, "parent", f"{root['handle']}1", "pfifo"], check=False
    )
    assert done.returncode != 0
    assert len(qdiscs()) == 1 + QUEUES


def test_connections_send_through_several_queues(
    connections: list[tuple[socket.socket, socket.socket]],
) -> None:
    """Packets that many connections send in one sync are held, and let go, in each queue."""
    with RawPort(64, 64, nic=NIC) as port:
        ids = [port.attach(sock) for _peer, sock in connections]
        before = qdiscs()
        for k, id in enumerate(ids):
            port.put(port.tx.head + k, id, b"%8d" % id)
        port.tx.set_head((port.tx.head + len(ids)) % port.tx.n)
        port.sync(SYNC_TX)
        for (peer, _sock), id in zip(connections, ids, strict=True):
            assert peer.recv(8) == b"%8d" % id
        root, *fifos = (
            now["packets"] - then["packets"] for then, now in zip(before, qdiscs(), strict=True)
        )
    assert sum(1 for packets in fifos if packets) > 1, fifos
    assert root == sum(fifos) >= CONNECTIONS


def test_a_pair_polls_the_queues_of_its_connections(
    connections: list[tuple[socket.socket, socket.socket]],
) -> None:
    by_queue: dict[int, list[socket.socket]] = {}
    for _peer, sock in connections:
        by_queue.setdefault(napi_id(sock), []).append(sock)
    assert len(by_queue) > 1, "all came by one queue"
    one, *others = by_queue.values()
    with RawPort(64, 64, nic=NIC) as port:
        assert polled_by(port) == set(), "nothing is attached yet"
        port.attach(one[0])
        alone = polled_by(port)
        assert len(alone) == 1
        for socks in others:
            port.attach(socks[0])
        assert len(polled_by(port)) == len(by_queue)
        assert polled_by(port) > alone


def test_the_queues_of_a_nic_that_was_down_are_others(
    connections: list[tuple[socket.socket, socket.socket]],
) -> None:
    """Drivers make new NAPI contexts when the NIC comes up: a pair polls those, and no others."""
    peer, sock = connections[0]
    with RawPort(64, 64, nic=NIC) as port:
        port.attach(sock)
        before = napi_id(sock)
        sh(f"ip link set {NIC} down; ip link set {NIC} up")
        # Its neighbour is to be found again, so this takes a moment.
        peer.sendall(b"again")
        got = b""

        def received() -> bool:
            nonlocal got
            got += b"".join(data for _id, data, _events, _err in port.receive())
            return got == b"again"

        eventually(received, lambda: got)
        assert napi_id(sock) != before
        assert len(polled_by(port)) == 1


def test_a_nic_with_queues_is_unbound_and_bound_again(
    connections: list[tuple[socket.socket, socket.socket]],
) -> None:
    peer, sock = connections[0]
    with RawPort(64, 64, nic=NIC) as port:
        id = port.attach(sock)
        for command in ("del", "replace"):
            sh(f"tc qdisc {command} dev {NIC} root {'stackmap' * (command == 'replace')}")
            port.send(id, command.encode())
            assert peer.recv(100) == command.encode()
    assert len(qdiscs()) == 1 + QUEUES
