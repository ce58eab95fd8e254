"""Bad input from an application: the documented errno and counter, and nothing else suffers."""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import mmap
import os
import select
import socket
import struct
import time

import pytest

from tests.guest.attached import Attached
from tests.guest.raw import (
    CLOSED,
    REFUSED,
    REGISTER_SIZE,
    SMIOC_SYNC,
    SYNC_POLL,
    SYNC_RX,
    SYNC_TX,
    SYNC_WAIT,
    WRITABLE,
    RawPort,
    Ring,
    register,
)
from tests.guest.wire import NIC, connect_pair
from tests.receiving import receive_exactly


def submit(port: RawPort, count: int = 1) -> list[int]:
    """Advance head over ``count`` slots and sync; returns the slots' numbers."""
    first = port.tx.head
    port.tx.set_head((first + count) % port.tx.n)
    port.sync(SYNC_TX)
    return [(first + k) % port.tx.n for k in range(count)]


def test_layout_is_netmaps() -> None:
    with RawPort() as port:
        check_layout(port)


def check_layout(port: RawPort) -> None:
    assert (port.tx.n, port.rx.n, port.tx.buf_size) == (1024, 1024, 4096)
    assert (port.tx.dir, port.rx.dir) == (0, 1)
    assert (port.tx.head, port.tx.cur, port.tx.tail) == (0, 0, 1023)
    assert (port.rx.head, port.rx.cur, port.rx.tail) == (0, 0, 0)
    assert port.name == f"tcp:{NIC}"
    assert port.mem_id > 1
    # the same buffer is at the same place, whichever ring one looks from
    assert port.tx.address(7) == port.rx.address(7)
    assert len({port.tx.slot(i).buf for i in range(port.tx.n)}) == port.tx.n
    assert min(port.tx.slot(i).buf for i in range(port.tx.n)) >= 2


@pytest.mark.parametrize(
    ("fields", "code", "counter"),
    [
        ({"len": 0}, errno.EINVAL, "bad_slots"),
        ({"len": 4097}, errno.EINVAL, "bad_slots"),
        ({"len": 65535}, errno.EINVAL, "bad_slots"),
        ({"len": 100, "offset": 3997}, errno.EINVAL, "bad_slots"),
        ({"len": 1, "offset": 65535}, errno.EINVAL, "bad_slots"),
        ({"len": 10, "events": 0x80}, errno.EINVAL, "bad_slots"),
        ({"len": 10, "events": REFUSED}, errno.EINVAL, "bad_slots"),
        ({"len": 10, "err": 1}, errno.EINVAL, "bad_slots"),
        ({"len": 10, "buf": 0}, errno.ERANGE, "bad_slots"),
        ({"len": 10, "buf": 1}, errno.ERANGE, "bad_slots"),
        ({"len": 10, "buf": 2**32 - 1}, errno.ERANGE, "bad_slots"),
        ({"len": 10, "id": 0}, errno.ENOENT, "unknown_conn"),
        ({"len": 10, "id": 2**32 - 1}, errno.ENOENT, "unknown_conn"),
    ],
)
def test_a_bad_slot_is_refused_alone(
    two: Attached, fields: dict[str, int], code: int, counter: str
) -> None:
    port = two.port
    first = port.tx.head
    before = port.stats()
    port.put(first, two.id, b"before")
    port.put(first + 1, two.id, b"x" * 10, **fields)
    bad = port.tx.slot(first + 1)
    port.put(first + 2, two.id, b" after")
    submit(port, 3)
    after = port.stats()
    slot = port.tx.slot(first + 1)
    assert (slot.events, slot.err) == (REFUSED, code)
    assert slot.buf == bad.buf, "a refused slot keeps what the application wrote"
    assert after[counter] == before[counter] + 1
    assert after["slots_sent"] == before["slots_sent"] + 2
    assert receive_exactly(two.peer, 12) == b"before after"


def test_index_beyond_the_last_buffer(two: Attached) -> None:
    port = two.port
    last = (port.size - port.tx.address(0)) // 4096 - 1
    port.put(port.tx.head, two.id, b"x", buf=last + 1)
    (i,) = submit(port)
    assert port.tx.slot(i).err == errno.ERANGE


def test_the_same_index_twice(two: Attached) -> None:
    port = two.port
    i = port.tx.head
    buf = port.put(i, two.id, b"once")
    port.tx.fill(i + 1, buf=buf, id=two.id, len=4)
    submit(port, 2)
    assert port.tx.slot(i).events == 0
    assert (port.tx.slot(i + 1).events, port.tx.slot(i + 1).err) == (REFUSED, errno.EPERM)
    assert port.stats()["bad_slots"] == 1
    assert two.peer.recv(100) == b"once"


def test_a_foreign_index(two: Attached) -> None:
    """A buffer of the receive ring, which the kernel fills."""
    port = two.port
    two.peer.sendall(b"hello")
    port.await_bytes(5)
    assert port.receive()
    taken = {port.tx.slot(k).buf for k in range(port.tx.n)}
    taken.add(port.rx.slot(0).buf)
    foreign = next(b for b in range(2, 6000) if b not in taken)
    port.tx.fill(port.tx.head, buf=foreign, id=two.id, len=4)
    (i,) = submit(port)
    assert (port.tx.slot(i).events, port.tx.slot(i).err) == (REFUSED, errno.EPERM)


def test_a_pinned_index(two: Attached) -> None:
    """A buffer that waits for its ACK: the application has lost it, until the ACK."""
    port = two.port
    two.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = []
    for _ in range(200):
        i = port.tx.head
        sent.append(port.put(i, two.id, b"z" * 4096))
        submit(port)
        if port.tx.slot(i).events:
            break
    assert port.stats()["pinned"] > 0
    port.tx.fill(port.tx.head, buf=sent[-2], id=two.honest, len=4)
    (i,) = submit(port)
    assert (port.tx.slot(i).events, port.tx.slot(i).err) == (REFUSED, errno.EPERM)


@pytest.mark.parametrize("ring", ["tx", "rx"])
@pytest.mark.parametrize("where", [1024, 2**31, 2**32 - 1])
@pytest.mark.parametrize("field", ["head", "cur"])
def test_head_or_cur_out_of_range(two: Attached, ring: str, where: int, field: str) -> None:
    port = two.port
    the_ring: Ring = getattr(port, ring)
    old = the_ring.head
    if field == "head":
        the_ring.set_head(where)
    else:
        the_ring.set_cur(where)
    with pytest.raises(OSError) as caught:
        port.sync(SYNC_TX | SYNC_RX)
    assert caught.value.errno == errno.EINVAL
    assert port.stats()["bad_rings"] == 1
    assert (the_ring.head, the_ring.cur) == (old, old)


def test_receive_head_beyond_tail_and_backward(two: Attached) -> None:
    port = two.port
    port.rx.set_head(5)
    with pytest.raises(OSError, match="Invalid argument"):
        port.sync(SYNC_RX)
    two.peer.sendall(b"hello")
    port.await_bytes(5)
    assert port.receive()
    port.sync(SYNC_RX)
    port.rx.set_head(port.rx.n - 1)
    with pytest.raises(OSError, match="Invalid argument"):
        port.sync(SYNC_RX)
    assert port.stats()["bad_rings"] == 2


def test_poll_reports_a_bad_ring(port: RawPort) -> None:
    port.tx.set_head(9999)
    poller = select.poll()
    poller.register(port.fd, select.POLLIN)
    assert poller.poll(0)[0][1] & select.POLLERR


def test_tail_scribbled_is_rewritten(two: Attached) -> None:
    port = two.port
    struct.pack_into("<I", port.memory, port.tx.start + 28, 12345)
    port.send(two.id, b"x")
    assert port.tx.tail == 0


def test_a_bad_index_given_back_by_the_receiver(two: Attached) -> None:
    port = two.port
    for number in range(3):
        two.peer.sendall(b"n%d" % number)
        port.await_bytes(2 * (number + 1))
        port.sync(SYNC_RX)
        i = port.rx.head
        assert i != port.rx.tail
        port.rx.fill(i, buf=(1, 2**32 - 1, port.tx.slot(5).buf)[number])
        port.rx.set_head((i + 1) % port.rx.n)
        port.sync(SYNC_RX)
    # Slot 5's buffer was the application's to give: only the first two were bad.
    assert port.stats()["bad_slots"] == 2


def test_a_receiver_may_keep_buffers(two: Attached) -> None:
    """Slots given back with index 0 get spare buffers; those kept may go back in others' place."""
    port = two.port
    free = port.stats()["bufs_free"]
    kept: list[int] = []
    for number in range(2 * port.rx.n):
        two.peer.sendall(b"%04d" % number)
        port.await_bytes(4 * (number + 1))
        port.sync(SYNC_RX)
        i = port.rx.head
        slot = port.rx.slot(i)
        at = port.rx.address(slot.buf)
        assert port.memory[at : at + 4] == b"%04d" % number
        if len(kept) < 10:
            assert slot.buf not in kept
            kept.append(slot.buf)
            port.rx.fill(i, buf=0)
        port.rx.set_head((i + 1) % port.rx.n)
        port.sync(SYNC_RX)
    for number, buf in enumerate(kept):
        at = port.rx.address(buf)
        assert port.memory[at : at + 4] == b"%04d" % number
    assert port.stats()["bufs_free"] == free - len(kept)
    assert port.stats()["bad_slots"] == 0
    i = port.tx.head
    port.put(i, two.id, b"", buf=kept[0], len=4)
    port.tx.set_head((i + 1) % port.tx.n)
    port.sync(SYNC_TX)
    assert two.peer.recv(10) == b"0000"


def test_a_received_buffer_may_be_sent(two: Attached) -> None:
    """Zero-copy echo by netmap's swap: the buffers of two slots change places."""
    port = two.port
    two.peer.sendall(b"ping")
    port.await_bytes(4)
    port.sync(SYNC_RX)
    i, o = port.rx.head, port.tx.head
    got, spare = port.rx.slot(i), port.tx.slot(o)
    port.tx.fill(o, buf=got.buf, id=two.id, len=got.len)
    port.rx.fill(i, buf=spare.buf)
    port.rx.set_head((i + 1) % port.rx.n)
    port.tx.set_head((o + 1) % port.tx.n)
    port.sync()
    assert two.peer.recv(10) == b"ping"
    assert port.stats()["bad_slots"] == 0


def test_refusal_keeps_order(two: Attached) -> None:
    """Once a slot got "try again", nothing behind it overtakes it in the same sync."""
    port = two.port
    two.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    accepted = 0
    for _ in range(40):
        first = port.tx.head
        for k in range(25):
            port.put(first + k, two.id, bytes([k]) * 4096)
        slots = [port.tx.slot(i) for i in submit(port, 25)]
        refused = [s.events & REFUSED for s in slots]
        assert refused == sorted(refused), "an accepted slot behind a refused one"
        assert all(s.err == errno.EAGAIN for s in slots if s.events)
        accepted += refused.count(0)
        if all(refused):
            break
    else:
        pytest.fail("the connection took everything")
    assert port.stats()["slots_sent"] == accepted
    # The peer reads; WRITABLE follows.
    got = 0
    deadline = time.monotonic() + 60
    events = 0
    while got < accepted * 4096 or not events & WRITABLE:
        assert time.monotonic() < deadline, (got, accepted * 4096, events)
        if select.select([two.peer], [], [], 0.05)[0]:
            got += len(two.peer.recv(65536))
        for _id, _payload, event, _err in port.receive():
            events |= event
    assert got == accepted * 4096


# -- register, attach ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "header", "code"),
    [
        (f"tcp:{NIC}", {"version": 13}, errno.EINVAL),
        (f"tcp:{NIC}", {"version": 16}, errno.EINVAL),
        (f"tcp:{NIC}", {"reserved": 1}, errno.EINVAL),
        (f"tcp:{NIC}", {"reqtype": 77}, errno.EINVAL),
        (f"tcp:{NIC}", {"options": 4096}, errno.EFAULT),
        (NIC, {}, errno.EINVAL),
        ("tcp:lo", {}, errno.ENXIO),
        ("tcp:nosuch", {}, errno.ENXIO),
        ("tcp:", {}, errno.ENXIO),
    ],
)
def test_register_refuses(name: str, header: dict[str, int], code: int) -> None:
    fd = os.open("/dev/stackmap", os.O_RDWR)
    with pytest.raises(OSError) as caught:
        register(fd, name, bytearray(REGISTER_SIZE), **header)
    assert caught.value.errno == code
    os.close(fd)


@pytest.mark.parametrize("slots", [3, 16385, 2**32 - 1])
def test_register_refuses_sizes(slots: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        RawPort(tx_slots=slots)
    with pytest.raises(OSError, match="Invalid argument"):
        RawPort(rx_slots=slots)


def test_registering_twice(port: RawPort) -> None:
    with pytest.raises(OSError, match="busy"):
        register(port.fd, f"tcp:{NIC}", bytearray(REGISTER_SIZE))


def test_small_rings_work() -> None:
    with RawPort(tx_slots=4, rx_slots=4) as port:
        two = Attached(port)
        for _ in range(20):
            two.check_honest()
        two.close()


def test_before_register_every_call_is_refused() -> None:
    fd = os.open("/dev/stackmap", os.O_RDWR)
    with pytest.raises(OSError) as caught:
        fcntl.ioctl(fd, SMIOC_SYNC, bytes(8))
    assert caught.value.errno == errno.ENXIO
    with pytest.raises(OSError, match="Invalid argument"):
        mmap.mmap(fd, 4096)
    with pytest.raises(OSError) as caught:
        fcntl.ioctl(fd, 0x6977, bytes(8))
    assert caught.value.errno == errno.ENOTTY
    os.close(fd)


@pytest.mark.parametrize(
    ("flags", "spin_us", "deadline"),
    [
        (SYNC_WAIT, 0, 0.0),
        (2**31, 0, 0.0),
        (SYNC_POLL, 1001, 0.0),
        # what only a step that is not asked for would look at
        (SYNC_RX, 1, 0.0),
        (SYNC_RX | SYNC_POLL, 0, -1.0),
    ],
)
def test_a_sync_that_makes_no_sense(
    port: RawPort, flags: int, spin_us: int, deadline: float
) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        port.sync(flags, spin_us, deadline)


def test_detach_gives_the_socket_back(two: Attached) -> None:
    port = two.port
    two.peer.sendall(b"ring ")
    port.await_bytes(5)
    port.sync(SYNC_RX)
    port.send(two.id, b"from the ring ")
    port.detach(two.id)
    two.peer.sendall(b"socket")
    assert select.select([two.sock], [], [], 60)[0]
    story = [(p, e) for i, p, e, _x in port.receive() if i == two.id]
    assert story == [(b"ring ", 0), (b"", CLOSED)]
    assert two.sock.recv(100) == b"socket"
    two.sock.sendall(b"from the socket")
    got = b""
    while len(got) < 29:
        got += two.peer.recv(100)
    assert got == b"from the ring from the socket"
    with pytest.raises(OSError, match="No such file"):
        port.detach(two.id)
    with pytest.raises(OSError, match="No such file"):
        port.pause(two.id)
    # and it can be attached again, under another id
    again = port.attach(two.sock)
    assert again not in (two.id, two.honest)
    port.send(again, b"back")
    assert two.peer.recv(10) == b"back"


def test_an_id_of_a_closed_connection_is_unknown(two: Attached) -> None:
    two.sock.close()
    deadline = time.monotonic() + 10
    while (two.id, b"", CLOSED, 0) not in two.port.receive():
        assert time.monotonic() < deadline
    two.port.put(two.port.tx.head, two.id, b"x")
    (i,) = submit(two.port)
    assert two.port.tx.slot(i).err == errno.ENOENT


def test_closing_the_port_first_leaves_an_ordinary_socket() -> None:
    with RawPort() as port:
        peer, sock = connect_pair()
        id = port.attach(sock)
        port.send(id, b"by ring")
    peer_got = peer.recv(100)
    assert peer_got == b"by ring"
    sock.sendall(b"by socket")
    assert peer.recv(100) == b"by socket"
    peer.sendall(b"hello")
    assert sock.recv(100) == b"hello"
    peer.close()
    sock.close()


def test_a_forked_child_has_no_mapping(two: Attached) -> None:
    pid = os.fork()
    if not pid:
        faulthandler.disable()
        os._exit(two.port.memory[0])  # touches what it must not have
    _pid, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)


def test_spares_run_out_and_come_back() -> None:
    """With every buffer pinned the ring stops; it goes on when the peer acknowledges."""
    with RawPort(tx_slots=8, rx_slots=8) as port:
        peers = []
        ids = []
        for _ in range(12):
            peer, sock = connect_pair()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            peers.append((peer, sock))
            ids.append(port.attach(sock))
        for number in range(300):
            i = port.tx.head
            if i == port.tx.tail:
                break
            id = ids[number % len(ids)]
            port.put(i, id, b"q" * 4096)
            submit(port)
            port.receive()
        stats = port.stats()
        # 8 slots, 32 spares: never more than what exists, and never an error
        assert stats["pinned"] <= 32
        assert stats["bad_slots"] == stats["bad_rings"] == 0
        total = stats["slots_sent"] * 4096
        got = 0
        deadline = time.monotonic() + 60
        while got < total:
            assert time.monotonic() < deadline, (got, total, port.stats())
            ready, _, _ = select.select([p for p, _ in peers], [], [], 0.1)
            got += sum(len(p.recv(65536)) for p in ready)
            port.sync(SYNC_TX)
            total = port.stats()["slots_sent"] * 4096
            port.receive()
        while port.stats()["pinned"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert port.stats()["bufs_free"] == 32
        for pair in peers:
            for sock in pair:
                sock.close()
