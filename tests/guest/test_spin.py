"""SMIOC_SYNC with POLL and a budget: the call polls the NIC for so long while nothing arrives."""

from __future__ import annotations

import mmap
import socket
import struct
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from stackmap import RingPort
from tests.guest.commands import sh
from tests.guest.raw import STATE_OFFSET, STATE_SIZE, SYNC_POLL, SYNC_RX, SYNC_WAIT, RawPort
from tests.guest.wire import NIC, PEER_NAMESPACE, connect_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

BUDGET_US = 1000
#: Delay of the peer's packets.
DELAY_US = 300
PATIENCE = 60.0
SO_INCOMING_NAPI_ID = 56
BYTES_RECEIVED_AT = 48  # in struct sm_state


@pytest.fixture
def napi(nic: str) -> Iterator[None]:
    """The NIC has a NAPI context, and what the peer sends goes through it."""
    peer = f"ip netns exec {PEER_NAMESPACE} ethtool -K {nic}"
    sh(f"ethtool -K {nic} gro on; {peer} tso off")
    yield
    sh(f"ethtool -K {nic} gro off; {peer} tso on")


@pytest.fixture
def delay(nic: str) -> Iterator[None]:
    change = f"tc -n {PEER_NAMESPACE} qdisc"
    sh(f"modprobe sch_netem; {change} add dev {nic} root netem delay {DELAY_US}us")
    yield
    sh(f"{change} del dev {nic} root")


@dataclass
class Line:
    """A port with one connection, and TCP's state of that."""

    port: RawPort
    peer: socket.socket
    sock: socket.socket
    states: mmap.mmap
    record: int

    @property
    def bytes_received(self) -> int:
        """By TCP, as the record says: no system call is needed to see it."""
        at = self.record * STATE_SIZE + BYTES_RECEIVED_AT
        received: int = struct.unpack_from("<Q", self.states, at)[0]
        return received


@pytest.fixture
def line() -> Iterator[Line]:
    peer, sock = connect_pair()
    with RawPort(16, 16, connections=32) as port, closing(peer), closing(sock):
        record = port.attach_to(0, sock).record
        size = port.connections * STATE_SIZE
        with mmap.mmap(port.port_fd, size, prot=mmap.PROT_READ, offset=STATE_OFFSET) as states:
            yield Line(port, peer, sock, states, record)


def arrives_during_a_call(line: Line, spin_us: int) -> bool | None:
    """Whether what is under way is received by the one call; None if it was there before."""
    before = line.bytes_received
    line.peer.sendall(b"on its way")
    was_there = line.bytes_received != before
    line.port.sync(SYNC_RX | SYNC_POLL, spin_us=spin_us)
    received = line.port.rx.tail != line.port.rx.head
    got = b""
    deadline = time.monotonic() + PATIENCE
    while got != b"on its way":
        assert time.monotonic() < deadline, got
        got += b"".join(data for _id, data, _events, _err in line.port.receive())
    return None if was_there else received


@pytest.mark.usefixtures("napi", "delay")
def test_what_arrives_during_the_budget_is_received_by_that_call(line: Line) -> None:
    """Mostly: where the machine has better things to do, the budget may be over first."""
    told: list[bool] = []
    deadline = time.monotonic() + PATIENCE
    while len(told) < 40:
        assert time.monotonic() < deadline, f"nothing is ever under way: {told}"
        answer = arrives_during_a_call(line, BUDGET_US)
        if answer is not None:
            told.append(answer)
    assert line.sock.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID) != 0
    assert sum(told) > len(told) / 2, told


@pytest.mark.usefixtures("napi")
def test_an_empty_budget_is_used_up_and_no_more(line: Line) -> None:
    """Where the clock is coarse, one call may be shorter, but not each of them."""
    spent = []
    for _ in range(50):
        before = time.monotonic()
        line.port.sync(SYNC_RX | SYNC_POLL, spin_us=BUDGET_US)
        spent.append(time.monotonic() - before)
        assert line.port.rx.tail == line.port.rx.head
    assert max(spent) >= 0.9 * BUDGET_US / 1e6
    assert sum(spent) < PATIENCE


@pytest.mark.usefixtures("napi")
def test_a_budget_and_a_wait(line: Line) -> None:
    """The call polls first, and sleeps afterwards until something comes, or the deadline."""
    flags = SYNC_RX | SYNC_POLL | SYNC_WAIT
    deadline = time.monotonic() + 0.2
    line.port.sync(flags, spin_us=BUDGET_US, deadline=deadline)
    assert time.monotonic() >= deadline
    later = threading.Timer(0.2, line.peer.sendall, [b"late"])
    later.start()
    line.port.sync(flags, spin_us=BUDGET_US, deadline=-1.0)
    assert [slot[1] for slot in line.port.receive()] == [b"late"]
    later.join()


def test_a_nic_without_napi_is_not_polled(line: Line) -> None:
    """The budget is of no use there, and does no harm."""
    line.port.sync(SYNC_RX | SYNC_POLL, spin_us=BUDGET_US)
    line.peer.sendall(b"by interrupt")
    deadline = time.monotonic() + PATIENCE
    while line.port.rx.tail == line.port.rx.head:
        assert time.monotonic() < deadline
        line.port.sync(SYNC_RX | SYNC_POLL, spin_us=BUDGET_US)
    assert [slot[1] for slot in line.port.receive()] == [b"by interrupt"]


def test_a_budget_that_is_too_large(line: Line) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        line.port.sync(SYNC_RX | SYNC_POLL, spin_us=BUDGET_US + 1)


@pytest.mark.usefixtures("napi", "delay")
def test_the_librarys_exchanges_spin() -> None:
    peer, sock = connect_pair()
    with RingPort(NIC, spin=BUDGET_US / 1e6) as port, closing(peer):
        connection = port.attach(sock)
        for number in range(50):
            word = b"%04d" % number
            peer.sendall(word)
            got = b""
            while got != word:
                got += b"".join(bytes(segment.view) for segment in port.exchange(PATIENCE))
            connection.write(word)
            port.exchange()
            assert peer.recv(100) == word
