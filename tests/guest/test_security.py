"""An application can harm itself by what it writes and maps; nobody else, and not the kernel."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import socket
import struct
import time
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.guest.attached import Attached
from tests.guest.children import PATIENCE, Child
from tests.guest.pattern import pattern
from tests.guest.raw import (
    REFUSED,
    SLOTS,
    STATE_OFFSET,
    STATE_SIZE,
    SYNC_RX,
    SYNC_TX,
    RawPair,
    RawPort,
    Ring,
)
from tests.guest.wire import connect_pair
from tests.receiving import receive_exactly
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = mmap.PAGESIZE
HEAD_TO_TAIL = slice(20, 32)
MREMAP_MAYMOVE = 1

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@pytest.fixture
def elsewhere() -> Iterator[Attached]:
    """Two connections of another port, which must come out unharmed."""
    with RawPort(64, 64) as port:
        attached = Attached(port)
        yield attached
        attached.check_honest()
        attached.close()


def submit(pair: RawPair, count: int = 1) -> list[int]:
    """Advance head over slots and sync; returns their numbers."""
    first = pair.tx.head
    pair.tx.set_head((first + count) % pair.tx.n)
    pair.sync(SYNC_TX)
    return [(first + k) % pair.tx.n for k in range(count)]


# -- buffers --


def test_writing_into_pinned_pages_changes_ones_own_stream_only(two: Attached) -> None:
    port = two.port
    two.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream = pattern(1, 0, 1 << 20)
    buffers: list[int] = []
    taken = [0, 0]
    refused = False
    while not refused:
        first, at = port.tx.head, len(buffers) * PAGE
        buffers.append(port.put(first, two.id, b"a" * PAGE))
        port.put(first + 1, two.honest, stream[at : at + PAGE])
        for n, i in enumerate(submit(port, 2)):
            refused |= bool(port.tx.slot(i).events & REFUSED)
            taken[n] += not port.tx.slot(i).events & REFUSED
    assert port.stats()["pinned"] > 2
    for buffer in buffers:
        at = port.tx.address(buffer)
        port.memory[at : at + PAGE] = b"b" * PAGE
    assert set(receive_exactly(two.peer, taken[0] * PAGE)) == set(b"ab")
    assert receive_exactly(two.honest_peer, taken[1] * PAGE) == stream[: taken[1] * PAGE]
    eventually(lambda: not port.stats()["pinned"], port.stats)


def test_buffers_in_flight_on_another_ring_are_refused(elsewhere: Attached) -> None:
    with RawPort(64, 64, rings=2) as port:
        first, second = port.pairs
        peer, sock = connect_pair()
        other_peer, other_sock = connect_pair()
        with closing(peer), closing(sock), closing(other_peer), closing(other_sock):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            id = port.attach_to(0, sock).id
            other = port.attach_to(1, other_sock).id
            in_flight: list[int] = []
            while not port.stats()["pinned"] or len(in_flight) < 40:
                buffer = first.put(first.tx.head, id, b"f" * PAGE)
                (i,) = submit(first)
                if first.tx.slot(i).events & REFUSED:
                    break
                in_flight.append(buffer)
            for buffer in in_flight[-2:]:
                second.tx.fill(second.tx.head, buf=buffer, id=other, len=4)
                (i,) = submit(second)
                slot = second.tx.slot(i)
                assert (slot.events, slot.err) == (REFUSED, errno.EPERM)
            # a connection belongs to one ring
            second.put(second.tx.head, id, b"not mine")
            (i,) = submit(second)
            assert second.tx.slot(i).err == errno.ENOENT
            second.put(second.tx.head, other, b"mine")
            submit(second)
            assert other_peer.recv(100) == b"mine"


def test_a_fresh_port_shows_nobodys_data() -> None:
    for _ in range(3):
        with RawPort(64, 64, extra=8, spare=64, connections=64) as port:
            expect_blank(port)
            # Another application fills every byte that it can write.
            at = port.tx.address(0)
            port.memory[at:] = b"\xa5" * (port.size - at)
            for ring in (port.tx, port.rx):
                start = ring.start + SLOTS
                port.memory[start : start + 16 * ring.n] = b"\xa5" * (16 * ring.n)


def expect_blank(port: RawPort) -> None:
    """There is nothing in the mappings but what the interface says."""
    left = bytearray(port.memory[:])
    struct.pack_into("16s", left, port.nif, b"")  # ni_name
    struct.pack_into("<10I4q", left, port.nif + 16, *[0] * 14)  # the other fields
    for ring in (port.tx, port.rx):
        struct.pack_into("<qIIHH3I", left, ring.start, *[0] * 8)
        struct.pack_into("<Q", left, ring.start + 56, 0)  # offset_mask
    for i in range(port.tx.n):
        struct.pack_into("<I", left, port.tx.start + SLOTS + 16 * i, 0)  # buf_idx
    for buffer in port.extra_buffers():
        struct.pack_into("<I", left, port.tx.address(buffer), 0)  # the next one's index
    assert not any(left)
    with mmap.mmap(
        port.port_fd, port.connections * STATE_SIZE, prot=mmap.PROT_READ, offset=STATE_OFFSET
    ) as states:
        assert not any(states[:])


# -- the ring --


def test_the_kernel_ignores_changes_of_a_ring_s_header(two: Attached) -> None:
    """The kernel reads head and cur; everything else may say what it likes."""
    port = two.port
    noise = random.Random(1)
    for _ in range(20):
        for ring in (port.tx, port.rx):
            start = ring.start
            heads = port.memory[start + HEAD_TO_TAIL.start : start + HEAD_TO_TAIL.stop]
            port.memory[start : start + SLOTS] = noise.randbytes(SLOTS)
            port.memory[start + HEAD_TO_TAIL.start : start + HEAD_TO_TAIL.stop] = heads
        port.memory[port.nif : port.nif + 100] = noise.randbytes(100)
        two.check_honest()


def scribble(memory: mmap.mmap, ring: Ring, ids: list[int], until: float) -> None:
    """Write anything into the slots of a ring, at any time."""
    noise = random.Random(2)
    while time.monotonic() < until:
        i = noise.randrange(ring.n)
        ring.fill(
            i,
            buf=noise.choice([0, noise.randrange(2, 300), noise.getrandbits(32)]),
            len=noise.choice([1, PAGE, noise.getrandbits(16)]),
            id=noise.choice(ids),
            offset=noise.choice([0, noise.getrandbits(16)]),
            events=noise.choice([0, 0, 0, noise.getrandbits(8)]),
        )


def map_again(port: RawPort, fd: int) -> RawPair:
    """The port as another process sees it."""
    return RawPair(fd, mmap.mmap(fd, port.size), port.nif, 0)


def test_slots_rewritten_during_syncs(elsewhere: Attached) -> None:
    """A second process changes slots while the kernel reads them."""
    with RawPort(64, 64) as port:
        bad = Attached(port)
        stop_waiting(bad)
        ids = [bad.id, bad.honest, 0, 12345]
        end = time.monotonic() + 4

        def work(_tell: Callable[[], object]) -> None:
            again = map_again(port, port.port_fd)
            scribble(again.memory, again.tx, ids, end)

        with Child(work) as child:
            number = 0
            while time.monotonic() < end:
                for i in range(port.tx.n):
                    port.tx.fill(i, buf=port.tx.slot(i).buf, id=ids[i % 2], len=1 + number % PAGE)
                port.tx.set_head(port.tx.tail)
                port.sync(SYNC_TX)
                drain(bad)
                number += 1
                if number % 16 == 0:
                    elsewhere.check_honest()
            assert child.await_end() == 0
        bad.close()


def stop_waiting(attached: Attached) -> None:
    for peer in (attached.peer, attached.honest_peer):
        peer.setblocking(False)


def drain(attached: Attached) -> None:
    """Read what the peers have, so that the connections go on."""
    for peer in (attached.peer, attached.honest_peer):
        with suppress(BlockingIOError):
            peer.recv(1 << 16)


def test_a_port_in_two_processes(elsewhere: Attached) -> None:
    """The descriptor travels over a socket; both map the region, fill, give back and sync."""
    with RawPort(64, 64) as port:
        bad = Attached(port)
        bad.peer.sendall(bytes(50_000))
        stop_waiting(bad)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end = time.monotonic() + 4

        def work(_tell: Callable[[], object]) -> None:
            _message, fds, _flags, _address = socket.recv_fds(there, 1, 1)
            use_badly(map_again(port, fds[0]), bad.id, end)

        with here, there, Child(work) as child:
            socket.send_fds(here, [b"\0"], [port.port_fd])
            use_badly(port, bad.honest, end, meanwhile=lambda: drain(bad))
            elsewhere.check_honest()
            assert child.await_end() == 0
        stats = port.stats()
        assert stats["slots_sent"] > 0
        bad.close()


class BadRingError(Exception):
    """The kernel found a head where it cannot be."""


def sync(pair: RawPair) -> None:
    try:
        pair.sync(SYNC_TX | SYNC_RX)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise BadRingError from None


def use_badly(
    pair: RawPair, id: int, until: float, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Use a pair of rings as if nobody else did; once at least."""
    over = False
    while not over:
        pair.put(pair.tx.head % pair.tx.n, id, b"mine alone")
        pair.tx.set_head((pair.tx.head + 1) % pair.tx.n)
        pair.rx.set_head(pair.rx.tail)
        with suppress(BadRingError):
            sync(pair)
        meanwhile()
        over = time.monotonic() >= until


# -- mappings --


def code(call: Callable[[], object]) -> int:
    """The errno with which a call fails."""
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno or 0


class Mapping:
    """A mapping of one page, by the system calls."""

    def __init__(self, fd: int, protection: int, flags: int, offset: int) -> None:
        start = libc.mmap(None, PAGE, protection, flags, fd, offset)
        if start == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self.start: int = start

    def grow(self) -> int:
        """Try to make it larger; returns the errno."""
        assert libc.mremap(self.start, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == ctypes.c_void_p(-1).value
        return ctypes.get_errno()

    def unmap(self) -> None:
        assert libc.munmap(self.start, PAGE) == 0


def test_other_mappings_are_refused() -> None:
    """Private mappings, mappings beyond the end, and mremap() to a larger size."""
    with RawPort(4, 4, connections=64) as port:
        check_mappings(port)


def check_mappings(port: RawPort) -> None:
    fd = port.port_fd
    end = STATE_OFFSET + port.connections * STATE_SIZE
    for flags, offset in (
        (mmap.MAP_PRIVATE, 0),
        (mmap.MAP_PRIVATE, STATE_OFFSET),
        (mmap.MAP_SHARED, port.size),
        (mmap.MAP_SHARED, STATE_OFFSET - PAGE),
        (mmap.MAP_SHARED, end),
        (mmap.MAP_SHARED, 1 << 50),
    ):
        assert code(partial(Mapping, fd, mmap.PROT_READ, flags, offset)) == errno.EINVAL, offset
    for offset in (0, port.size - PAGE, STATE_OFFSET, end - PAGE):
        page = Mapping(fd, mmap.PROT_READ, mmap.MAP_SHARED, offset)
        assert page.grow() == errno.EFAULT
        page.unmap()


def test_mapped_pages_outlive_the_port(elsewhere: Attached) -> None:
    """The mapping keeps the port open: no page of it is anybody else's meanwhile."""
    port = RawPort(64, 64)
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        id = port.attach(sock)
        port.send(id, b"before")
        os.close(port.port_fd)
        at = port.tx.address(5)
        port.memory[at : at + 4] = b"mine"
        with RawPort(64, 64, connections=64) as other:
            expect_blank(other)
        assert port.memory[at : at + 4] == b"mine"
        port.memory.close()
        assert peer.recv(100) == b"before"
        # now the port is closed, and the socket an ordinary one
        sock.sendall(b"after")
        assert peer.recv(100) == b"after"


def test_a_killed_holder_frees_what_it_held(elsewhere: Attached) -> None:
    def work(tell: Callable[[], object]) -> None:
        with RawPort(64, 64) as port:
            peer, sock = connect_pair()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            id = port.attach(sock)
            for _ in range(8):
                port.send(id, b"k" * PAGE)
            tell()
            time.sleep(PATIENCE)

    for _ in range(3):
        with Child(work) as child:
            child.await_word()
            os.kill(child.pid, signal.SIGKILL)
            assert child.await_end() == -signal.SIGKILL
        elsewhere.check_honest()
