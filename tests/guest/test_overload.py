"""Too few buffers: order is kept, waiters are woken, and no buffer is reused too early."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.guest.children import Child
from tests.guest.commands import sh
from tests.guest.partial_slot import unacknowledged
from tests.guest.pattern import pattern
from tests.guest.raw import REFUSED, SYNC_RX, SYNC_TX, RawPort
from tests.guest.tcp_info import tcp_info
from tests.guest.wire import NIC, connect_pair, peer_is_late_by, peer_loses
from tests.receiving import receive_exactly
from tests.waiting import eventually

SPARE = 4
PATIENCE = 60.0


def await_acks(port: RawPort) -> None:
    """Wait until no buffer is pinned any more."""
    eventually(lambda: not port.stats()["pinned"], port.stats, patience=PATIENCE)


class Crowd:
    """A port with few buffers, and connections that want them."""

    def __init__(self, connections: int) -> None:
        self.port = RawPort(16, 16, spare=SPARE)
        pairs = [connect_pair() for _ in range(connections)]
        self.peers = [peer for peer, _sock in pairs]
        self.socks = [sock for _peer, sock in pairs]
        self.ids = [self.port.attach(sock) for sock in self.socks]

    def submit(self, slots: list[tuple[int, bytes]]) -> list[int]:
        """Send (connection, payload) in one sync; returns each slot's errno, 0: accepted."""
        port = self.port
        first = port.tx.head
        for k, (number, data) in enumerate(slots):
            port.put((first + k) % port.tx.n, self.ids[number], data)
        port.tx.set_head((first + len(slots)) % port.tx.n)
        port.sync(SYNC_TX)
        slot = [port.tx.slot((first + k) % port.tx.n) for k in range(len(slots))]
        return [s.err if s.events & REFUSED else 0 for s in slot]

    def fill(self) -> None:
        """Pin every spare buffer: what is sent is not acknowledged."""
        deadline = time.monotonic() + PATIENCE
        while self.port.stats()["bufs_free"]:
            assert time.monotonic() < deadline, self.port.stats()
            self.submit([(number, b"x") for number in range(len(self.ids))])

    def stall(self) -> None:
        """Submit a slot for which there is no buffer."""
        self.fill()
        stalls = self.port.stats()["stalls"]
        self.submit([(0, b"y")])
        assert self.port.stats()["stalls"] > stalls

    def close(self) -> None:
        self.port.close()
        for sock in self.peers + self.socks:
            sock.close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd(3)
    yield crowd
    crowd.close()


def test_nothing_overtakes_a_refused_slot_where_buffers_run_out(crowd: Crowd) -> None:
    """The ring must not stop between two slots of a connection of which the first was refused."""
    first, second, third = 0, 1, 2
    with peer_loses(100):
        slots = [(first, b"0"), (first, b"1"), (first, b"2"), (second, b"a"), (third, b"b")]
        codes = crowd.submit([*slots, (first, b"3"), (second, b"c")])
        assert codes[:2] == [0, 0], codes
        assert codes[2] == errno.EAGAIN, codes
        assert crowd.port.stats()["bufs_free"] == 0
        assert codes[5] == errno.EAGAIN, codes
    await_acks(crowd.port)
    assert crowd.port.tx.tail == (crowd.port.tx.head - 1) % crowd.port.tx.n, "the ring stopped"
    pending = {
        first: [b"2", b"3"],
        second: [d for d, code in ((b"a", codes[3]), (b"c", codes[6])) if code],
        third: [b"b"] if codes[4] else [],
    }
    for number, chunks in pending.items():
        for chunk in chunks:
            assert crowd.submit([(number, chunk)]) == [0]
            await_acks(crowd.port)
    for number, expected in ((first, b"0123"), (second, b"ac"), (third, b"b")):
        assert receive_exactly(crowd.peers[number], len(expected)) == expected


def wait_by_poll(port: RawPort) -> None:
    wanted = select.poll()
    wanted.register(port.fd, select.POLLOUT)
    # Any wake-up will do: poll() itself sends waiting slots.
    while port.tx.tail != (port.tx.head - 1) % port.tx.n:
        assert wanted.poll(PATIENCE * 1000), "nobody was woken"


def wait_by_epoll(port: RawPort) -> None:
    with select.epoll() as wanted:
        wanted.register(port.fd, select.EPOLLOUT)
        while port.tx.tail != (port.tx.head - 1) % port.tx.n:
            assert wanted.poll(PATIENCE), "nobody was woken"


@pytest.mark.parametrize("wait", [wait_by_poll, wait_by_epoll])
@pytest.mark.parametrize("unread", [False, True])
def test_waiters_for_a_stopped_ring_are_woken(
    wait: Callable[[RawPort], None], unread: bool
) -> None:
    """Also while there is something to read, which is not what it waits for."""

    def work(tell: Callable[[], object]) -> None:
        with ExitStack() as stack:
            crowd = Crowd(SPARE)
            stack.callback(crowd.close)
            port = crowd.port
            if unread:
                crowd.peers[0].sendall(b"to be read")
                deadline = time.monotonic() + PATIENCE
                while port.rx.tail == port.rx.head:
                    assert time.monotonic() < deadline
                    port.sync(SYNC_RX)
            sh("modprobe sch_netem")
            with peer_loses(100):
                crowd.stall()
                # The ring is full: all slots are the kernel's.
                while port.tx.head != port.tx.tail:
                    port.put(port.tx.head, crowd.ids[1], b"z")
                    port.tx.set_head((port.tx.head + 1) % port.tx.n)
                port.sync(SYNC_TX)
            tell()
            wait(port)

    with Child(work) as child:
        child.await_word()
        assert child.await_end() == 0


def counter(name: str) -> int:
    """One of TCP's counters in this network namespace (`nstat`)."""
    names, values = (
        line.split() for line in Path("/proc/net/netstat").read_text().splitlines()[:2]
    )
    return int(values[names.index(name)])


SIZE, TOTAL = 400, 400_000
BASE_MSS = 512


@contextmanager
def mtu_probing(mode: int) -> Iterator[None]:
    """TCP looks for the path's MTU by itself (RFC 4821): always, or once it sees a black hole."""
    where = "sysctl -qw net.ipv4.tcp"
    sh(f"{where}_mtu_probing={mode}; {where}_base_mss={BASE_MSS}; {where}_retries1=1")
    try:
        yield
    finally:
        sh(f"{where}_mtu_probing=0; {where}_base_mss=1024; {where}_retries1=3")


@contextmanager
def by_socket(sock: socket.socket, stream: bytes) -> Iterator[Callable[[], None]]:
    """Gives a function that sends as much of the stream as goes, in small pieces."""
    sock.setblocking(False)
    sent = 0

    def push() -> None:
        nonlocal sent
        with suppress(BlockingIOError):
            while sent < TOTAL:
                sent += sock.send(stream[sent : sent + SIZE])

    yield push


@contextmanager
def by_ring(sock: socket.socket, stream: bytes) -> Iterator[Callable[[], None]]:
    """The same on a ring."""
    with RawPort(256, 16, spare=1024) as port:
        id = port.attach(sock)
        sent = 0

        def push() -> None:
            nonlocal sent
            port.receive()
            refused = False
            while sent < TOTAL and not refused:
                # Alone in its sync, and in its packet: a probe would swallow several of those.
                slot = port.tx.head
                port.put(slot, id, stream[sent : sent + SIZE])
                port.tx.set_head((slot + 1) % port.tx.n)
                port.sync_all()
                refused = bool(port.tx.slot(slot).events & REFUSED)
                sent += SIZE * (not refused)

        yield push
        await_acks(port)
        assert port.stats()["released_reset"] == 0


@contextmanager
def long_path(_sock: socket.socket, _push: Callable[[], None]) -> Iterator[None]:
    """Much waits and little is under way."""
    with peer_is_late_by(50):
        yield


@contextmanager
def path_that_was_cut(sock: socket.socket, push: Callable[[], None]) -> Iterator[None]:
    """TCP takes it for a black hole, and then learns that ACKs were late."""
    with peer_is_late_by(6000):
        push()
        sent = unacknowledged(sock)
        eventually(lambda: tcp_info(sock)["mss"] <= BASE_MSS, lambda: "TCP sees no black hole")
        assert unacknowledged(sock) == sent
        eventually(lambda: unacknowledged(sock) < sent, lambda: "no ACK comes")
    yield


Sender = Callable[[socket.socket, bytes], AbstractContextManager[Callable[[], None]]]
Way = Callable[[socket.socket, Callable[[], None]], AbstractContextManager[None]]


def probes_of(sender: Sender, path: Way) -> int:
    """Send a stream in bursts; returns how often TCP probed meanwhile."""
    before = counter("TCPMTUPSuccess") + counter("TCPMTUPFail")
    stream = pattern(3, 0, TOTAL)
    got = bytearray()
    peer, sock = connect_pair()
    with peer, sock:
        peer.setblocking(False)
        # One ACK for many packets leaves room for a probe at once.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        # Much is to wait: each small piece takes as much as a whole page.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TOTAL)
        with sender(sock, stream) as push, path(sock, push):
            deadline = time.monotonic() + PATIENCE
            while len(got) < TOTAL:
                assert time.monotonic() < deadline, len(got)
                push()
                time.sleep(0.05)
                with suppress(BlockingIOError):
                    got += peer.recv(1 << 20)
            # A probe is counted when its ACK comes, which takes a while here.
            while unacknowledged(sock):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert got == stream
    return counter("TCPMTUPSuccess") + counter("TCPMTUPFail") - before


@pytest.mark.parametrize(
    ("mode", "path"),
    [
        (2, long_path),
        pytest.param(1, path_that_was_cut, marks=pytest.mark.long),
        pytest.param(2, path_that_was_cut, marks=pytest.mark.long),
    ],
)
def test_tcp_does_not_probe_the_mtu_with_pages_of_the_application(mode: int, path: Way) -> None:
    """A probe references pages without an owner, and goes to a local peer uncopied."""
    with mtu_probing(mode):
        assert probes_of(by_socket, path) > 0, "TCP does not probe here, not even from a socket"
        assert probes_of(by_ring, path) == 0


def test_buffers_wait_for_their_ack_where_tcp_copies() -> None:
    """The NIC cannot gather, so TCP lets go of the pages at once; the rule is the same."""
    sh(f"ethtool -K {NIC} sg off")
    try:
        peer, sock = connect_pair()
        with peer, sock, RawPort(16, 16) as port:
            id = port.attach(sock)
            with peer_loses(100):
                port.send(id, b"copied")
                assert peer.recv(100) == b"copied"
                time.sleep(0.5)
                assert port.stats()["pinned"] == 1
                assert port.stats()["released_ack"] == port.stats()["released_reset"] == 0
            await_acks(port)
            assert port.stats()["released_ack"] == 1
    finally:
        sh(f"ethtool -K {NIC} sg on")
