"""Whatever can fail in a system call fails once: an errno, no leak, and the port goes on."""

from __future__ import annotations

import errno
import gc
import os
import struct
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.debug.inside.faults import KINDS, Faults, Strike, module_memory
from tests.guest.attached import Attached
from tests.guest.pattern import pattern
from tests.guest.raw import (
    CLOSED,
    REFUSED,
    REGISTER_SIZE,
    SYNC_POLL,
    SYNC_RX,
    SYNC_TX,
    WRITABLE,
    RawPort,
    register,
)
from tests.guest.rest import end_by_closing, end_by_detaching, end_by_shutdown, leave_a_rest
from tests.guest.wire import NIC, connect_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

#: What a failed allocation, or a failed copy, may come out as.
HONEST = {errno.ENOMEM, errno.ENOBUFS, errno.EFAULT}
SLOTS = 16
PATIENCE = 60.0


@pytest.fixture(params=KINDS)
def faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    """Failures on demand; afterwards the module has no more memory and users than before."""
    before = module_memory(), references()
    with Faults(request.param) as faults:
        yield faults
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while (module_memory(), references()) != before:
        assert time.monotonic() < deadline, f"leaked: {module_memory()}, {references()}"
        time.sleep(0.05)


def references() -> int:
    return int(Path("/sys/module/stackmap/refcnt").read_text())


def check(strike: Strike) -> None:
    """A call that fails says why, and one that nothing happened to does not fail."""
    if strike.error is not None:
        assert strike.hit, f"failed without a fault: {strike.error}"
        assert strike.error.errno in HONEST, strike.error


def check_hits(faults: Faults, hits: int, *kinds: str) -> None:
    """What is known to fail did."""
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


@pytest.mark.parametrize("size", [1, 100, 4096])
def test_sync_to_send(faults: Faults, two: Attached, size: int) -> None:
    """What is refused is refused for a time; what is accepted arrives, once and in order."""
    hits = refused = 0
    hit = True
    while hit:
        chunks = [bytes([hits % 256, k]) * size for k in range(8)]
        pending = [chunk[:size] for chunk in chunks]
        expected = b"".join(pending)
        strike, pending = submit(two.port, two.id, pending, faults, hits + 1)
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
    check_hits(faults, hits, "failslab", "fail_usercopy")
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
    """What was accepted arrives whole, or the connection is reset: a hole is never the end."""
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


def submit(
    port: RawPort, id: int, chunks: list[bytes], faults: Faults, nth: int
) -> tuple[Strike, list[bytes]]:
    """Send chunks with one sync; returns what was refused."""
    first = port.tx.head
    for k, chunk in enumerate(chunks):
        port.put((first + k) % port.tx.n, id, chunk)
    port.tx.set_head((first + len(chunks)) % port.tx.n)
    strike = faults.strike(nth, lambda: port.sync(SYNC_TX))
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
