"""Attempts of hostile applications and peers: no other suffers, and nothing hangs."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import socket
import struct
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guest.children import PATIENCE, Child
from tests.guest.commands import sh
from tests.guest.locked_socket import WaitingCall, attached_lock_held, lock_held
from tests.guest.memory import memory_cgroup
from tests.guest.partial_slot import end_by_closing, end_by_detaching, end_by_shutdown, leave_a_rest
from tests.guest.pattern import pattern
from tests.guest.raw import (
    CLOSED,
    ERROR,
    SYNC_RX,
    SYNC_TX,
    SYNC_WAIT,
    RawPort,
    register,
    register_body,
)
from tests.guest.wire import NIC, PEER_ADDRESS, connect_pair, in_peer_namespace
from tests.receiving import receive_exactly
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.guest.attached import Attached

TCP_NOTSENT_LOWAT, TCP_ULP, IPV6_ADDRFORM = 25, 31, 1
TX_SOFTWARE, SOFTWARE, OPT_ID, TX_SCHED, TX_ACK, OPT_TSONLY = (1 << n for n in (1, 4, 7, 8, 9, 11))
SO_TIMESTAMPING = 37
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")

libc = ctypes.CDLL(None, use_errno=True)


# -- registering --


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup in which a large port has no room."""
    with memory_cgroup(32 << 20) as cgroup:
        yield cgroup


def test_registering_again_after_too_much(two: Attached, cgroup: Path) -> None:
    """A request that found no memory leaves nothing in the next one's port."""

    def work(_tell: Callable[[], object]) -> None:
        (cgroup / "cgroup.procs").write_text("0")
        fd = os.open("/dev/stackmap", os.O_RDWR)
        with pytest.raises(OSError) as caught:
            register(fd, f"tcp:{NIC}", register_body(4, 4, extra=100_000))
        assert caught.value.errno == errno.ENOMEM
        register(fd, f"tcp:{NIC}", register_body(4, 4))
        os.close(fd)

    with Child(work) as child:
        assert child.await_end() == 0


# -- waiting with a connection that cannot go on --


@contextmanager
def small_port() -> Iterator[tuple[RawPort, socket.socket, int]]:
    """A port of the smallest size with one connection: the peer's socket, and its id."""
    peer, sock = connect_pair()
    with RawPort(4, 4) as port, closing(peer), closing(sock):
        yield port, peer, port.attach(sock)


@contextmanager
def with_an_urgent_byte() -> Iterator[RawPort]:
    with small_port() as (port, peer, _id):
        peer.send(b"!", socket.MSG_OOB)
        time.sleep(0.1)
        yield port


@contextmanager
def with_a_full_ring() -> Iterator[RawPort]:
    """The application has seen every slot and keeps them; more is in TCP's queue."""
    with small_port() as (port, peer, _id):
        peer.sendall(bytes(5 * 4096))
        deadline = time.monotonic() + PATIENCE
        while (port.rx.tail - port.rx.head) % 4 != 3:
            assert time.monotonic() < deadline
            port.sync(SYNC_RX)
        port.rx.set_cur(port.rx.tail)
        peer.sendall(b"and more")
        yield port


@contextmanager
def with_no_buffer() -> Iterator[RawPort]:
    """The application hoards buffers, and gives slots back without any; more is in TCP's queue."""
    with small_port() as (port, peer, id):
        deadline = time.monotonic() + PATIENCE
        while port.stats()["bufs_free"] or port.stats()["pinned"]:
            assert time.monotonic() < deadline, port.stats()
            peer.sendall(b"x")
            time.sleep(0.02)
            port.sync(SYNC_RX)
            i, o = port.rx.head, port.tx.head
            if i == port.rx.tail:
                continue
            # Received buffers are sent; the transmit slots' own buffers are in no slot any more.
            port.tx.fill(o, buf=port.rx.slot(i).buf, id=id, len=1)
            port.tx.set_head((o + 1) % port.tx.n)
            port.rx.fill(i, buf=0)
            port.rx.set_head((i + 1) % port.rx.n)
            port.sync(SYNC_TX | SYNC_RX)
        peer.sendall(b"no room for this")
        yield port


PREDICAMENTS = [with_an_urgent_byte, with_a_full_ring, with_no_buffer]


@pytest.mark.parametrize("predicament", PREDICAMENTS)
def test_a_wait_in_a_predicament_ends_at_its_deadline(
    two: Attached, predicament: Callable[[], AbstractContextManager[RawPort]]
) -> None:
    def work(_tell: Callable[[], object]) -> None:
        with predicament() as port:
            for _ in range(3):
                port.sync(SYNC_RX | SYNC_WAIT, deadline=time.monotonic() + 0.2)
            poller = select.poll()
            poller.register(port.fd, select.POLLIN)
            poller.poll(200)

    with Child(work) as child:
        assert child.await_end() == 0


@pytest.mark.parametrize("predicament", PREDICAMENTS)
def test_a_wait_in_a_predicament_sleeps_and_can_be_interrupted(
    two: Attached, predicament: Callable[[], AbstractContextManager[RawPort]]
) -> None:
    def work(tell: Callable[[], object]) -> None:
        with predicament() as port:
            tell()
            while True:
                port.sync(SYNC_RX | SYNC_WAIT, deadline=-1.0)
                port.rx.set_cur(port.rx.tail)

    with Child(work) as child:
        child.await_word()
        child.await_sleep()
        two.check_honest()
        os.kill(child.pid, signal.SIGTERM)
        assert child.await_end() == -signal.SIGTERM


@pytest.mark.parametrize("when", ["before attaching", "while attached"])
def test_an_urgent_byte_is_a_byte_like_others(two: Attached, when: str) -> None:
    """The peer's MSG_OOB ends no stream, and its byte keeps its place."""

    def work(_tell: Callable[[], object]) -> None:
        peer, sock = connect_pair()
        with RawPort(16, 16) as port:
            id = port.attach(sock) if when == "while attached" else 0
            peer.sendall(b"one")
            peer.send(b"!", socket.MSG_OOB)
            peer.sendall(b"two")
            time.sleep(0.1)
            id = id or port.attach(sock)
            peer.send(b"?", socket.MSG_OOB)
            peer.sendall(b"three")
            got = b""
            while got != b"one!two?three":
                found = port.receive(SYNC_WAIT, deadline=-1.0)
                assert not any(events for _id, _data, events, _err in found)
                got += b"".join(data for _id, data, _events, _err in found)
            port.send(id, b"back")
            assert peer.recv(100) == b"back"

    with Child(work) as child:
        assert child.await_end() == 0


# -- the NIC --


@pytest.mark.parametrize("sends", [False, True])
def test_syncs_without_pause_do_not_keep_the_nic(two: Attached, sends: bool) -> None:
    """Packets are held back for a sync, but not for ever if one is always under way."""

    def work(tell: Callable[[], object]) -> None:
        peer, sock = connect_pair()
        peer.close()
        with RawPort(2048, 4, spare=4) as port:
            id = port.attach(sock)
            for i in range(port.tx.n):
                port.tx.fill(i, id=id, len=0)
            tell()
            while True:
                if sends:
                    port.put(port.tx.head, id, b"x")
                port.tx.set_head(port.tx.tail)
                port.sync(SYNC_TX)

    children = [Child(work) for _ in range(6)]
    try:
        for child in children:
            child.await_word()
        for _ in range(5):
            two.check_honest()
        peer, sock = connect_pair()
        with closing(peer), closing(sock):
            sock.sendall(b"ordinary")
            assert peer.recv(100) == b"ordinary"
    finally:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
        for child in children:
            with child:
                assert child.await_end() == -signal.SIGKILL


def packets_sent() -> int:
    """How many packets the driver was given."""
    return int(Path(f"/sys/class/net/{NIC}/statistics/tx_packets").read_text())


def sent_at_once(send: Callable[[], object]) -> bool:
    """Whether the driver has the packet when the call returns.

    With more than one processor another one may be at work on the queue: then it comes soon.
    """
    before = packets_sent()
    send()
    if (os.cpu_count() or 1) > 1:
        eventually(lambda: packets_sent() > before, lambda: "the packet is held for ever")
    return packets_sent() > before


@contextmanager
def a_sync_that_sleeps(two: Attached) -> Iterator[None]:
    """A sync of the port has begun to hold packets, and waits for a socket's lock."""
    port = two.port
    first = port.tx.head
    for k in range(2):  # one alone would hold nothing
        port.put(first + k, two.id, b"late")
    port.tx.set_head((first + 2) % port.tx.n)
    with attached_lock_held(two.sock):
        syncing = WaitingCall(lambda: port.sync(SYNC_TX))
        syncing.await_lock()
        yield
    assert syncing.result() == 0
    assert receive_exactly(two.peer, 8) == b"latelate"


def test_a_sync_that_sleeps_holds_nobody_elses_packets(two: Attached) -> None:
    """A sync holds packets of its own port only, from the first packet on."""
    peer, sock = connect_pair()
    with (
        RawPort(16, 16) as other,
        closing(peer),
        closing(sock),
        socket.socket(type=socket.SOCK_DGRAM) as ordinary,
    ):
        id = other.attach(sock)
        for _ in range(20):
            with a_sync_that_sleeps(two):
                assert sent_at_once(lambda: ordinary.sendto(b"datagram", (PEER_ADDRESS, 9)))
            with a_sync_that_sleeps(two):
                assert sent_at_once(lambda: other.send(id, b"of another port"))
            assert receive_exactly(peer, 15) == b"of another port"
    two.check_honest()


def test_a_sync_that_sleeps_holds_its_own_connections_only_for_a_moment(two: Attached) -> None:
    """A connection of the same pair answers its peer, whose segments need ACKs."""
    with a_sync_that_sleeps(two):
        before = packets_sent()
        two.honest_peer.sendall(b"x" * 100_000)
        eventually(lambda: packets_sent() > before, lambda: "the ACK is held for ever")
    got = b""
    while len(got) < 100_000:
        got += b"".join(p for i, p, _e, _x in two.port.receive() if i == two.honest)


def test_many_bad_slots_do_not_hold_other_users_packets(two: Attached) -> None:
    """Two good slots begin a hold, and thousands of bad ones draw the sync out."""

    def work(tell: Callable[[], object]) -> None:
        peer, sock = connect_pair()
        with RawPort(16384, 4, spare=4) as port, closing(peer), closing(sock):
            id = port.attach(sock)
            peer.setblocking(False)
            for k in range(port.tx.n):
                port.tx.fill(k, id=0, len=1)
            tell()
            while True:
                for k in range(2):
                    port.tx.fill(port.tx.head + k, id=id, len=1)
                port.tx.set_head(port.tx.tail)
                port.sync(SYNC_TX)
                with suppress(BlockingIOError):
                    peer.recv(1 << 16)

    with Child(work) as child, socket.socket(type=socket.SOCK_DGRAM) as ordinary:
        child.await_word()
        for _ in range(200):
            assert sent_at_once(lambda: ordinary.sendto(b"datagram", (PEER_ADDRESS, 9)))


# -- calls that were under way when the socket was attached --


def connect_pair_mapped() -> tuple[socket.socket, socket.socket]:
    """An IPv4 connection on an IPv6 socket."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        peer = in_peer_namespace()
        peer.settimeout(60.0)
        peer.connect(("10.78.0.1", listener.getsockname()[1]))
        return peer, listener.accept()[0]


def set_option(sock: socket.socket, level: int, name: int, value: bytes) -> None:
    """setsockopt() that lets other threads run meanwhile; the socket's own does not."""
    check(libc.setsockopt(sock.fileno(), level, name, value, len(value)))


def check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_tls(sock: socket.socket) -> None:
    set_option(sock, socket.IPPROTO_TCP, TCP_ULP, b"tls")


def become_ipv4(sock: socket.socket) -> None:
    set_option(sock, socket.IPPROTO_IPV6, IPV6_ADDRFORM, struct.pack("i", socket.AF_INET))


def disconnect(sock: socket.socket) -> None:
    nowhere = struct.pack("<H14x", socket.AF_UNSPEC)
    check(libc.connect(sock.fileno(), nowhere, len(nowhere)))


@pytest.mark.parametrize("change", [become_tls, become_ipv4])
def test_a_change_under_way_comes_too_late(
    two: Attached, change: Callable[[socket.socket], None]
) -> None:
    """A call that began before attaching, and gets the socket's lock after it, is refused."""
    sh("modprobe -q tls")
    peer, sock = connect_pair_mapped()
    port = two.port
    ids: list[int] = []
    with closing(peer), closing(sock):
        with lock_held(sock):
            attaching = WaitingCall(lambda: ids.append(port.attach(sock)))
            attaching.await_lock()
            changing = WaitingCall(lambda: change(sock))
            changing.await_lock()
        assert attaching.result() == 0
        assert changing.result() != 0
        assert len(receive_exactly(peer, 4096)) == 4096
        port.send(ids[0], b"still attached")
        assert peer.recv(100) == b"still attached"
        peer.sendall(b"and back")
        deadline = time.monotonic() + PATIENCE
        while (ids[0], b"and back", 0, 0) not in port.receive():
            assert time.monotonic() < deadline
        port.detach(ids[0])
        sock.sendall(b"ordinary")
        assert peer.recv(100) == b"ordinary"


def test_a_disconnected_socket_does_not_listen(two: Attached) -> None:
    """connect(AF_UNSPEC) and listen() that began before attaching."""
    peer, sock = connect_pair()
    port = two.port
    ids: list[int] = []
    with closing(peer), closing(sock):
        with lock_held(sock):
            attaching = WaitingCall(lambda: ids.append(port.attach(sock)))
            attaching.await_lock()
            disconnecting = WaitingCall(lambda: disconnect(sock))
            disconnecting.await_lock()
            listening = WaitingCall(sock.listen)
            listening.await_lock()
        assert attaching.result() == 0
        disconnecting.result()
        assert listening.result() != 0
        sock.close()
        deadline = time.monotonic() + PATIENCE
        while (ids[0], b"", CLOSED, 0) not in port.receive():
            assert time.monotonic() < deadline


def test_an_attached_socket_belongs_to_an_upper_layer(two: Attached) -> None:
    """TCP itself knows, so that nothing can get past the module's own functions."""
    assert two.sock.getsockopt(socket.IPPROTO_TCP, TCP_ULP, 16).rstrip(b"\0") == b"stackmap"
    for change in (become_tls, become_ipv4):
        with pytest.raises(OSError) as caught:
            change(two.sock)
        assert caught.value.errno in (errno.EBUSY, errno.EEXIST)


def test_transmit_timestamps_while_connections_end(two: Attached) -> None:
    """They reach the socket's error queue, and its callback, without the socket's lock."""
    port = two.port
    wanted = TX_SOFTWARE | SOFTWARE | OPT_ID | TX_SCHED | TX_ACK | OPT_TSONLY
    for number in range(60):
        peer, sock = connect_pair()
        with closing(peer), closing(sock):
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, wanted)
            id = port.attach(sock)
            first = port.tx.head
            for k in range(8):
                port.put(first + k, id, b"timed")
            port.tx.set_head((first + 8) % port.tx.n)
            port.sync(SYNC_TX)
            if number % 2:
                port.detach(id)
            else:
                sock.close()
            found = port.receive()
            assert not any(events & ERROR for _id, _data, events, _err in found)
            assert receive_exactly(peer, 40) == b"timed" * 8


def test_transmit_timestamps_can_be_read(two: Attached) -> None:
    """Unread, they would take the receive buffer, and TCP would close its window."""
    wanted = TX_SOFTWARE | SOFTWARE | OPT_ID | TX_SCHED | TX_ACK | OPT_TSONLY
    two.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, wanted)
    for _ in range(300):
        two.port.send(two.id, b"timed")
        assert receive_exactly(two.peer, 5) == b"timed"
        stamps = 0
        with suppress(BlockingIOError):
            while True:
                data, ancillary, flags, _address = two.sock.recvmsg(100, 500, socket.MSG_ERRQUEUE)
                assert (data, flags & socket.MSG_ERRQUEUE) == (b"", socket.MSG_ERRQUEUE)
                stamps += len(ancillary)
        assert stamps
    two.peer.sendall(b"and back")
    got = b""
    while len(got) < 8:
        got += b"".join(data for _id, data, _events, _err in two.port.receive())
    assert got == b"and back"


# -- the rest of a slot that TCP took only part of --


@contextmanager
def small_unsent_limit(two: Attached) -> Iterator[None]:
    two.sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1)
    yield


@contextmanager
def no_memory_for_tcp(two: Attached) -> Iterator[None]:
    before = TCP_MEM.read_text()
    TCP_MEM.write_text("0 0 0")
    try:
        yield
    finally:
        TCP_MEM.write_text(before)


@pytest.mark.parametrize(
    ("strait", "end"),
    [
        (small_unsent_limit, end_by_shutdown),
        (small_unsent_limit, end_by_detaching),
        (small_unsent_limit, end_by_closing),
        # close() is not in the list: without memory TCP itself resets a connection that is closed
        (no_memory_for_tcp, end_by_shutdown),
        (no_memory_for_tcp, end_by_detaching),
    ],
)
def test_the_rest_is_sent_though_tcp_would_take_no_more(
    two: Attached,
    strait: Callable[[Attached], AbstractContextManager[None]],
    end: Callable[[Attached], None],
) -> None:
    stream = pattern(9, 0, 1 << 20)
    accepted = leave_a_rest(two, stream)
    with strait(two):
        end(two)
    got = b""
    while data := two.peer.recv(65536):
        got += data
    assert got == stream[:accepted]


# -- the rests of others --

#: So many works one queue of the kernel's runs at a time, and some more.
BLOCKED = 256 + 40
RT_RUNTIME = Path("/proc/sys/kernel/sched_rt_runtime_us")


@dataclass
class Blocker:
    """A connection whose rest is to be sent while its socket is locked for ever."""

    port: RawPort
    peer: socket.socket
    sock: socket.socket
    id: int


@contextmanager
def before_all_others() -> Iterator[None]:
    """Run before every ordinary thread, the kernel's workers included."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8 * BLOCKED, 8 * BLOCKED))
    runtime = RT_RUNTIME.read_text()
    RT_RUNTIME.write_text("-1")
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        RT_RUNTIME.write_text(runtime)


def read_all(peer: socket.socket) -> None:
    peer.setblocking(False)
    with suppress(BlockingIOError):
        while peer.recv(1 << 20):
            pass


@pytest.mark.long
def test_a_stuck_partial_slot_does_not_delay_others(two: Attached) -> None:
    """Each of them waits for the lock of its socket; nobody syncs."""
    stream = pattern(0, 0, 200_000)
    with ExitStack() as stack:
        port = stack.enter_context(RawPort(64, 64, spare=32768))
        blockers = []
        for _ in range(BLOCKED):
            peer, sock = (stack.enter_context(closing(end)) for end in connect_pair())
            blocker = Blocker(port, peer, sock, port.attach(sock))
            leave_a_rest(blocker, stream)
            blockers.append(blocker)
        accepted = leave_a_rest(two, stream)
        with before_all_others():
            for blocker in blockers:
                read_all(blocker.peer)  # now the rest may be sent, but the lock comes first
                stack.enter_context(attached_lock_held(blocker.sock))
        assert receive_exactly(two.peer, accepted) == stream[:accepted]
    # The other connections' work, still pending then, was in its way at no time.
    two.check_honest()
