"""Each allocation and copy of a system call fails once: an errno, no leak, the port goes on."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import socket
import struct
import time
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.debug.inside.faults import KINDS, Faults, Strike, function_text, module_memory
from tests.guest.attached import Attached
from tests.guest.commands import sh
from tests.guest.partial_slot import (
    bytes_acked,
    bytes_in_tcp,
    end_by_closing,
    end_by_detaching,
    end_by_shutdown,
    leave_a_rest,
)
from tests.guest.pattern import pattern
from tests.guest.raw import (
    ATTACH_LISTENER,
    CLOSED,
    OPEN,
    REFUSED,
    REGISTER_SIZE,
    SMIOC_RING,
    SYNC_POLL,
    SYNC_RX,
    SYNC_TX,
    WRITABLE,
    RawPair,
    RawPort,
    address_of,
    limits_option,
    register,
    register_body,
)
from tests.guest.wire import ADDRESS, NIC, connect_pair, in_peer_namespace
from tests.receiving import receive_exactly
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Errnos of a failed allocation or a failed copy.
HONEST = {errno.ENOMEM, errno.ENOBUFS, errno.EFAULT}
SLOTS = 16
PATIENCE = 60.0
#: References on the module that a bound NIC with one queue has: its root qdisc and its FIFO.
BINDING = 2


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Afterwards the module has no more memory and users than before."""
    before = settled()
    yield
    gc.collect()
    eventually(
        lambda: (module_memory(), references()) == before,
        lambda: f"leaked: {module_memory()}, {references()}",
        patience=PATIENCE,
    )


@pytest.fixture(params=KINDS)
def faults(request: pytest.FixtureRequest, nothing_left: None) -> Iterator[Faults]:
    """Failures on demand."""
    with Faults(request.param) as faults:
        yield faults


def settled() -> tuple[dict[str, int], int]:
    """Memory and users of the module while there is no port: of the wire's NIC only."""
    gc.collect()
    eventually(
        lambda: references() <= BINDING and len(module_memory()) <= 1,
        lambda: f"still there: {module_memory()}, {references()}",
        patience=PATIENCE,
    )
    return module_memory(), references()


def references() -> int:
    return int(Path("/sys/module/stackmap/refcnt").read_text())


def check(strike: Strike) -> None:
    """A call that fails says why, and one that nothing happened to does not fail."""
    if strike.error is not None:
        assert strike.hit, f"failed without a fault: {strike.error}"
        assert strike.error.errno in HONEST, strike.error


def check_hits(faults: Faults, hits: int, *kinds: str) -> None:
    """The faults that are known to be hit were."""
    assert hits > 0 or faults.kind not in kinds


def register_small(fd: int) -> None:
    body = bytearray(REGISTER_SIZE)
    struct.pack_into("<II", body, 16, SLOTS, SLOTS)
    register(fd, f"tcp:{NIC}", body)


def test_open(faults: Faults) -> None:
    descriptors: list[int] = []

    def open_device() -> None:
        descriptors.append(os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC))

    hits = 0
    hit = True
    while hit:
        strike = faults.strike(hits + 1, open_device)
        check(strike)
        hit = strike.hit
        hits += hit
        assert len(descriptors) == (strike.error is None)
        while descriptors:
            os.close(descriptors.pop())
    check_hits(faults, hits, "failslab")


def test_register(faults: Faults) -> None:
    """A port that could not be registered can be, without being opened again."""
    hits = 0
    hit = True
    while hit:
        fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
        try:
            strike = faults.strike(hits + 1, partial(register_small, fd))
            check(strike)
            hit = strike.hit
            hits += hit
            if strike.error is not None:
                register_small(fd)
        finally:
            os.close(fd)
    check_hits(faults, hits, *KINDS)
    assert hits > SLOTS or faults.kind != "fail_page_alloc"


def register_with_limits(fd: int, rings: int, option: bytearray) -> None:
    body = register_body(4, 4, rings, rings, 2)
    register(fd, f"tcp:{NIC}", body, options=address_of(option))


@pytest.mark.parametrize("rings", [1, 3])
def test_register_with_limits(faults: Faults, rings: int) -> None:
    """The option tells of the error too, where it can be written."""
    hits = 0
    hit = True
    while hit:
        fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
        try:
            option = limits_option(spare=3, connections=5)
            strike = faults.strike(hits + 1, partial(register_with_limits, fd, rings, option))
            check(strike)
            hit = strike.hit
            hits += hit
            if strike.error is not None:
                status = struct.unpack_from("<12xI", option)[0]
                assert strike.error.errno in (status, errno.EFAULT)
                option = limits_option(spare=3, connections=5)
                register_with_limits(fd, rings, option)
            assert struct.unpack_from("<12xI8xIII", option) == (0, 3, 5, 0)
        finally:
            os.close(fd)
    check_hits(faults, hits, *KINDS)
    # The rings' slots, spare and extra buffers; in copies, the option is there and back.
    assert hits > 8 * rings + 5 or faults.kind != "fail_page_alloc"
    assert hits > 4 or faults.kind != "fail_usercopy"


def test_ring_descriptors(faults: Faults) -> None:
    """There is a descriptor that works, or none at all."""
    descriptors = Path("/proc/self/fd")
    with RawPort(16, 16, rings=2) as port:
        peer, sock = connect_pair()
        with closing(peer), closing(sock):
            id = port.attach_to(1, sock).id
            opened: list[int] = []

            def open_ring() -> None:
                request = bytearray(struct.pack("<II", 1, 0))
                opened.append(fcntl.ioctl(port.port_fd, SMIOC_RING, request))

            hits = 0
            hit = True
            while hit:
                before = len(list(descriptors.iterdir()))
                strike = faults.strike(hits + 1, open_ring)
                check(strike)
                hit = strike.hit
                hits += hit
                assert len(opened) == (strike.error is None)
                assert len(list(descriptors.iterdir())) == before + len(opened)
                if not opened:
                    open_ring()
                ring = RawPair(opened.pop(), port.memory, port.nif, 1)
                ring.send(id, b"by another descriptor")
                assert peer.recv(100) == b"by another descriptor"
                os.close(ring.fd)
            check_hits(faults, hits, "failslab", "fail_usercopy")


def test_attach(faults: Faults, two: Attached) -> None:
    """A socket that could not be attached is an ordinary one, and can be."""
    ids: list[int] = []

    def attach(sock: socket.socket) -> None:
        ids.append(two.port.attach(sock))

    hits = 0
    hit = True
    while hit:
        peer, sock = connect_pair()
        peer.sendall(b"waiting before")
        strike = faults.strike(hits + 1, partial(attach, sock))
        check(strike)
        hit = strike.hit
        hits += hit
        if strike.error is not None:
            sock.sendall(b"ordinary")
            assert peer.recv(100) == b"ordinary"
            attach(sock)
        id = ids.pop()
        assert take(two.port, id, 14) == b"waiting before"
        two.port.send(id, b"attached")
        assert peer.recv(100) == b"attached"
        two.port.detach(id)
        sock.close()
        peer.close()
        two.check_honest()
    check_hits(faults, hits, "failslab", "fail_usercopy")


def listen(backlog: int = 8) -> socket.socket:
    return socket.create_server((ADDRESS, 0), backlog=backlog)


def connect(listener: socket.socket, word: bytes) -> socket.socket:
    """Connect from the other end, and say something at once."""
    peer = in_peer_namespace()
    peer.settimeout(PATIENCE)
    peer.connect(listener.getsockname())
    peer.sendall(word)
    return peer


def check_attached(port: RawPort, peer: socket.socket, word: bytes) -> None:
    """The connection that was just accepted is the peer's, and in the ring from its first byte."""
    found: list[tuple[int, bytes, int, int]] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < 2:
        assert time.monotonic() < deadline, found
        found += port.receive()
    (id, opened, event, _err), second = found
    assert event == OPEN
    assert struct.unpack_from("!H", opened, 10)[0] == peer.getsockname()[1]
    assert second == (id, word, 0, 0)
    port.send(id, b"by ring")
    assert peer.recv(100) == b"by ring"


def test_attach_a_listener(faults: Faults, two: Attached) -> None:
    """A listener that could not be attached is an ordinary one, and can be."""
    hits = 0
    hit = True
    while hit:
        with listen() as listener:

            def attach(sock: socket.socket = listener) -> None:
                two.port.attach_to(0, sock, ATTACH_LISTENER)

            strike = faults.strike(hits + 1, attach)
            check(strike)
            hit = strike.hit
            hits += hit
            if strike.error is not None:
                with connect(listener, b"ordinary") as peer, listener.accept()[0] as sock:
                    assert sock.recv(100) == b"ordinary"
                attach()
            with connect(listener, b"attached") as peer, listener.accept()[0]:
                check_attached(two.port, peer, b"attached")
        forget_events(two.port)
        two.check_honest()
    check_hits(faults, hits, "failslab", "fail_usercopy")


def test_accept(faults: Faults, two: Attached) -> None:
    """A connection that could not be attached is still in the backlog, before the next one."""
    hits = 0
    hit = True
    with listen() as listener:
        listener.settimeout(PATIENCE)
        two.port.attach_to(0, listener, ATTACH_LISTENER)
        while hit:
            with ExitStack() as stack:
                words = [b"first %d" % hits, b"second %d" % hits]
                peers = [stack.enter_context(connect(listener, word)) for word in words]
                accepted: list[socket.socket] = []

                def accept(to: list[socket.socket] = accepted) -> None:
                    to.append(listener.accept()[0])

                strike = faults.strike(hits + 1, accept)
                check(strike)
                hit = strike.hit
                hits += hit
                assert len(accepted) == (strike.error is None)
                if not accepted:
                    accept()
                stack.enter_context(accepted[0])
                check_attached(two.port, peers[0], words[0])
                accept()
                stack.enter_context(accepted[1])
                check_attached(two.port, peers[1], words[1])
            forget_events(two.port)
            two.check_honest()
    check_hits(faults, hits, "failslab")


def forget_events(port: RawPort) -> None:
    """Take what tells of the end of connections that both sides have closed."""
    deadline = time.monotonic() + PATIENCE
    while port.stats()["connections"] > 2:
        assert time.monotonic() < deadline, port.stats()
        port.receive()
    port.receive()


def test_detach(faults: Faults, two: Attached) -> None:
    """A connection that could not be given back is still attached, and can be given back."""
    hits = 0
    hit = True
    while hit:
        peer, sock = connect_pair()
        id = two.port.attach(sock)
        peer.sendall(b"for the ring")
        assert take(two.port, id, 12) == b"for the ring"
        strike = faults.strike(hits + 1, partial(two.port.detach, id))
        check(strike)
        hit = strike.hit
        hits += hit
        if strike.error is not None:
            two.port.send(id, b"attached")
            assert peer.recv(100) == b"attached"
            two.port.detach(id)
        wait_for_event(two.port, id, CLOSED)
        sock.sendall(b"ordinary")
        assert peer.recv(100) == b"ordinary"
        sock.close()
        peer.close()
        two.check_honest()
    check_hits(faults, hits, "fail_usercopy")


@pytest.mark.parametrize("call", ["sync", "poll"])
@pytest.mark.parametrize("size", [1, 100, 4096])
def test_sync_to_send(faults: Faults, two: Attached, size: int, call: str) -> None:
    """Refused slots are refused for a time; accepted ones arrive, once and in order."""
    hits = refused = 0
    hit = True
    while hit:
        chunks = [bytes([hits % 256, k]) * size for k in range(8)]
        pending = [chunk[:size] for chunk in chunks]
        expected = b"".join(pending)
        strike, pending = submit(two.port, two.id, pending, faults, hits + 1, call=call)
        hit = strike.hit
        check(strike)
        hits += hit
        while pending:
            refused += 1
            wait_for_event(two.port, two.id, WRITABLE)
            pending = submit(two.port, two.id, pending, faults, 0)[1]
        got = b""
        while len(got) < len(expected):
            more = two.peer.recv(len(expected) - len(got))
            assert more
            got += more
        assert got == expected
        two.check_honest()
    check_hits(faults, hits, "failslab", *(["fail_usercopy"] if call == "sync" else []))
    assert refused > 0 or faults.kind != "failslab", "no fault ever refused a slot"


def test_sync_to_receive(faults: Faults, two: Attached) -> None:
    hits = 0
    hit = True
    while hit:
        data = os.urandom(20_000)
        two.peer.sendall(data)
        strike = faults.strike(hits + 1, lambda: two.port.sync(SYNC_RX | SYNC_POLL))
        hit = strike.hit
        check(strike)
        hits += hit
        assert take(two.port, two.id, len(data)) == data
        two.check_honest()
    check_hits(faults, hits, "fail_usercopy")


@pytest.mark.parametrize("end", [end_by_shutdown, end_by_closing, end_by_detaching])
def test_the_rest_of_a_slot_is_sent_or_the_peer_learns(
    faults: Faults, port: RawPort, end: Callable[[Attached], None]
) -> None:
    """Accepted bytes arrive whole, or the connection is reset: a hole is never the end."""
    stream = pattern(9, 0, 1 << 20)
    hits = resets = 0
    hit = True
    while hit:
        two = Attached(port)
        accepted = leave_a_rest(two, stream)
        strike = faults.strike(hits + 1, partial(end, two))
        hit = strike.hit
        hits += hit
        gone = strike.error is not None and strike.error.errno == errno.ENOTCONN
        if strike.error is not None and not gone:
            check(strike)
            end(two)
        got = b""
        try:
            while data := two.peer.recv(65536):
                got += data
        except ConnectionResetError:
            assert hit, "reset without a fault"
            resets += 1
        else:
            assert got == stream[:accepted]
            assert not gone, "the connection is said to be gone, but ended in order"
        two.check_honest()
        two.close()
    assert resets > 0 or faults.kind != "failslab", "no fault ever lost the rest"


@contextmanager
def no_memory_in(function: str, times: int) -> Iterator[Path]:
    """Make allocations by a function fail, in any process; so often, or always (-1).

    Yields the file that tells how often they may fail still.
    """
    failslab = Path("/sys/kernel/debug/failslab")
    start, end = function_text(function)
    settings = {
        "require-start": hex(start), "require-end": hex(end), "stacktrace-depth": "32",
        "task-filter": "N", "ignore-gfp-wait": "N", "cache-filter": "N", "verbose": "0",
        "interval": "1", "space": "0", "times": str(times), "probability": "100",
    }  # fmt: skip
    before = {name: (failslab / name).read_text() for name in settings}
    try:
        for name, value in settings.items():
            (failslab / name).write_text(value)
        yield failslab / "times"
    finally:
        for name in reversed(settings):
            (failslab / name).write_text(before[name])


@pytest.fixture
def one_segment_each() -> Iterator[None]:
    """TCP makes packets of one segment, so what follows a full one needs another packet."""
    sh(f"ip link set {NIC} gso_max_segs 1")
    yield
    sh(f"ip link set {NIC} gso_max_segs 65535")


@pytest.mark.usefixtures("nothing_left", "one_segment_each")
@pytest.mark.parametrize("times", [1, 3])
def test_the_rest_is_sent_later_where_memory_was_short(port: RawPort, times: int) -> None:
    """The work queue that sends it fails so often; the next ACK has it try again."""
    stream = pattern(9, 0, 1 << 20)
    two = Attached(port)
    accepted = leave_a_rest(two, stream)
    with no_memory_in("sm_attach_flush_work", times) as left:
        got = receive_exactly(two.peer, accepted)
        assert left.read_text() == "0\n"
    assert got == stream[:accepted]
    two.check_honest()
    two.close()


@pytest.mark.usefixtures("nothing_left", "one_segment_each")
def test_the_rest_is_sent_though_memory_was_short_until_all_else_was_acknowledged(
    port: RawPort,
) -> None:
    """No ACK follows then that could be the occasion to try again."""
    stream = pattern(9, 0, 1 << 20)
    two = Attached(port)
    accepted = leave_a_rest(two, stream)
    in_tcp = bytes_in_tcp(two.sock)
    with no_memory_in("sm_attach_flush_work", -1):
        got = receive_exactly(two.peer, in_tcp)
        deadline = time.monotonic() + PATIENCE
        while bytes_acked(two.sock) < in_tcp:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(1)
        assert bytes_in_tcp(two.sock) == in_tcp, "the rest was sent without memory"
    got += receive_exactly(two.peer, accepted - in_tcp)
    assert got == stream[:accepted]
    two.check_honest()
    two.close()


# -- binding a NIC --


class Rtnetlink:
    """As much of rtnetlink as makes a qdisc, in this very thread."""

    NEW, DELETE = 36, 37
    ROOT = 0xFFFFFFFF
    REQUEST, ACK, REPLACE, CREATE = 1, 4, 0x100, 0x400
    KIND, OPTIONS, NESTED = 1, 2, 0x8000
    UID = 1

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sock.bind((0, 0))

    def _ask(self, kind: int, flags: int, nic: str, attributes: bytes) -> None:
        index = socket.if_nametoindex(nic)
        body = struct.pack("=Bxxxi3I", 0, index, 0, self.ROOT, 0) + attributes
        header = struct.pack("=IHHII", 16 + len(body), kind, self.REQUEST | self.ACK | flags, 1, 0)
        self._sock.send(header + body)
        code: int = -struct.unpack_from("=16xi", self._sock.recv(8192))[0]
        if code:
            raise OSError(code, os.strerror(code))

    def bind(self, nic: str, uid: int) -> None:
        """The request of ``stackmap bind --user``."""
        options = struct.pack("=HHI", 8, self.UID, uid)
        self._ask(
            self.NEW, self.CREATE | self.REPLACE, nic,
            struct.pack("=HH12s", 13, self.KIND, b"stackmap")
            + struct.pack("=HH", 4 + len(options), self.OPTIONS | self.NESTED) + options,
        )  # fmt: skip

    def unbind(self, nic: str) -> None:
        self._ask(self.DELETE, 0, nic, b"")

    def close(self) -> None:
        self._sock.close()


def test_bind(faults: Faults) -> None:
    """A NIC that could not be bound keeps its queueing, and can be bound."""
    sh("ip link add faulty type veth peer name faulty-peer; ip link set faulty up")
    hits = 0
    hit = True
    with closing(Rtnetlink()) as netlink:
        while hit:
            strike = faults.strike(hits + 1, partial(netlink.bind, "faulty", 4001))
            check(strike)
            hit = strike.hit
            hits += hit
            if strike.error is not None:
                with pytest.raises(OSError) as refused:
                    RawPort(4, 4, nic="faulty")
                assert refused.value.errno == errno.ENXIO
                netlink.bind("faulty", 4001)
            RawPort(4, 4, nic="faulty").close()
            netlink.unbind("faulty")
    sh("ip link del faulty")
    check_hits(faults, hits, "failslab")


def submit(
    port: RawPort, id: int, chunks: list[bytes], faults: Faults, nth: int, *, call: str = "sync"
) -> tuple[Strike, list[bytes]]:
    """Send chunks with one sync, or one poll(); returns what was refused."""
    first = port.tx.head
    for k, chunk in enumerate(chunks):
        port.put((first + k) % port.tx.n, id, chunk)
    port.tx.set_head((first + len(chunks)) % port.tx.n)
    wanted = select.poll()
    wanted.register(port.fd, select.POLLOUT)
    by = {"sync": lambda: port.sync(SYNC_TX), "poll": lambda: wanted.poll(0)}
    strike = faults.strike(nth, by[call])
    port.sync_all()
    refused = []
    for k, chunk in enumerate(chunks):
        slot = port.tx.slot((first + k) % port.tx.n)
        if slot.events & REFUSED:
            assert slot.err == errno.EAGAIN, slot
            refused.append(chunk)
        else:
            assert not refused, "a later slot was accepted where an earlier one was refused"
    return strike, refused


def take(port: RawPort, id: int, size: int) -> bytes:
    """Receive so many bytes of a connection."""
    got = b""
    deadline = time.monotonic() + PATIENCE
    while len(got) < size:
        assert time.monotonic() < deadline, f"{len(got)} bytes of {size}"
        got += b"".join(data for source, data, _events, _err in port.receive() if source == id)
    return got


def wait_for_event(port: RawPort, id: int, event: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        for source, _data, events, _err in port.receive():
            if source == id and events & event:
                return
        assert time.monotonic() < deadline, f"no event {event:#x}"
        time.sleep(0.001)
