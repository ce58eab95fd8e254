"""Several pairs of rings on one port, their buffers, and descriptors of their own."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guest.raw import (
    CLOSED,
    EOF,
    NIOCRXSYNC,
    NIOCTXSYNC,
    REFUSED,
    RING_ANY,
    SMIOC_ATTACH,
    SMIOC_DETACH,
    SMIOC_RING,
    SMIOC_RXCTL,
    SMIOC_STATS,
    SYNC_TX,
    RawPair,
    RawPort,
    Received,
)
from tests.guest.wire import connect_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def three() -> Iterator[RawPort]:
    """A port with three pairs of rings."""
    with RawPort(16, 16, rings=3, extra=4) as port:
        yield port


def code(call: Callable[..., object], *arguments: object) -> int:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno or 0


def hear(pair: RawPair, size: int) -> list[Received]:
    """Receive until so many bytes have come."""
    slots: list[Received] = []
    deadline = time.monotonic() + 60
    while sum(len(data) for _id, data, _event, _err in slots) < size:
        assert time.monotonic() < deadline, slots
        slots += pair.receive()
    return slots


def users_buffers(port: RawPort) -> list[int]:
    """The application's buffers while none is in flight and none was received."""
    in_slots = [pair.tx.slot(i).buf for pair in port.pairs for i in range(pair.tx.n)]
    return in_slots + port.extra_buffers()


def test_layout(three: RawPort) -> None:
    assert struct.unpack_from("<II", three.memory, three.nif + 24) == (3, 3)
    host = struct.unpack_from("<q24xq", three.memory, three.nif + 56 + 3 * 8)
    assert host == (0, 0)
    for index, pair in enumerate(three.pairs):
        assert (pair.tx.ringid, pair.tx.dir, pair.tx.n) == (index, 0, 16)
        assert (pair.rx.ringid, pair.rx.dir, pair.rx.n) == (index, 1, 16)
        assert pair.tx.address(9) == pair.rx.address(9) == three.tx.address(9)
    mine = users_buffers(three)
    assert len(mine) == len(set(mine)) == 3 * 16 + 4
    assert len(three.extra_buffers()) == 4


def test_descriptors(three: RawPort) -> None:
    for index, pair in enumerate(three.pairs[1:], 1):
        assert not os.get_inheritable(pair.fd)
        assert "stackmap-ring" in str(Path(f"/proc/self/fd/{pair.fd}").readlink())
        for command in (SMIOC_ATTACH, SMIOC_DETACH, SMIOC_RXCTL, SMIOC_STATS, SMIOC_RING):
            assert code(fcntl.ioctl, pair.fd, command, bytearray(128)) == errno.ENOTTY, index
        fcntl.ioctl(pair.fd, NIOCTXSYNC)
        fcntl.ioctl(pair.fd, NIOCRXSYNC)
    for request in ((3, 0), (2**32 - 1, 0), (0, 1)):
        assert code(fcntl.ioctl, three.fd, SMIOC_RING, bytearray(struct.pack("<II", *request))) == (
            errno.EINVAL
        )


def test_a_connection_belongs_to_one_pair(three: RawPort) -> None:
    peers, socks = zip(*[connect_pair() for _ in range(3)], strict=True)
    ids = [three.attach_to(index, sock).id for index, sock in enumerate(socks)]
    for number, (peer, id, pair) in enumerate(zip(peers, ids, three.pairs, strict=True)):
        text = b"for %d" % number
        peer.sendall(text)
        assert hear(pair, 5) == [(id, text, 0, 0)]
        pair.send(id, b"from %d" % number)
        assert peer.recv(100) == b"from %d" % number
    # a slot on another ring than its connection's names nobody
    three.pairs[2].put(three.pairs[2].tx.head, ids[1], b"astray")
    three.pairs[2].tx.set_head((three.pairs[2].tx.head + 1) % 16)
    three.pairs[2].sync(SYNC_TX)
    slot = three.pairs[2].tx.slot(three.pairs[2].tx.head - 1)
    assert (slot.events, slot.err) == (REFUSED, errno.ENOENT)
    # events go where the data went
    peers[1].close()
    story: list[Received] = []
    deadline = time.monotonic() + 60
    while not story:
        assert time.monotonic() < deadline
        story = three.pairs[1].receive()
        assert three.pairs[0].receive() == three.pairs[2].receive() == []
    assert story == [(ids[1], b"", EOF, 0)]
    three.detach(ids[2])
    while (ids[2], b"", CLOSED, 0) not in three.pairs[2].receive():
        assert time.monotonic() < deadline
    for sock in (*peers, *socks):
        sock.close()


def test_any_pair_is_the_one_with_the_fewest(three: RawPort) -> None:
    connections = [connect_pair() for _ in range(9)]
    rings = [three.attach_to(RING_ANY, sock).ring for _peer, sock in connections]
    assert Counter(rings) == {0: 3, 1: 3, 2: 3}
    for pair in connections:
        for sock in pair:
            sock.close()


def test_there_is_no_such_pair(three: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        assert code(three.attach_to, 3, sock) == errno.EINVAL
        assert code(three.attach_to, RING_ANY - 1, sock) == errno.EINVAL


def test_each_descriptor_is_readable_for_itself(three: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        three.attach_to(2, sock)
        pollers = []
        for pair in three.pairs:
            poller = select.poll()
            poller.register(pair.fd, select.POLLIN)
            pollers.append(poller)
        assert [poller.poll(0) for poller in pollers] == [[], [], []]
        peer.sendall(b"x")
        assert pollers[2].poll(60_000) == [(three.pairs[2].fd, select.POLLIN)]
        assert [poller.poll(0) for poller in pollers[:2]] == [[], []]


def test_the_port_closes_and_the_pairs_with_it() -> None:
    port = RawPort(16, 16, rings=2)
    peer, sock = connect_pair()
    attached = port.attach_to(1, sock)
    port.pairs[1].send(attached.id, b"by ring")
    port.memory.close()
    os.close(port.fd)
    ring = port.pairs[1].fd
    assert code(port.pairs[1].sync) == errno.ENXIO
    poller = select.poll()
    poller.register(ring, select.POLLIN)
    assert poller.poll(0)[0][1] & select.POLLERR
    os.close(ring)
    assert peer.recv(100) == b"by ring"
    sock.sendall(b"by socket")
    assert peer.recv(100) == b"by socket"
    peer.close()
    sock.close()


# -- buffers --


def test_a_buffer_received_on_one_pair_is_sent_on_another(three: RawPort) -> None:
    here_peer, here = connect_pair()
    there_peer, there = connect_pair()
    three.attach_to(0, here)
    onward = three.attach_to(2, there)
    source, target = three.pairs[0], three.pairs[2]
    for number in range(100):
        here_peer.sendall(b"%04d" % number)
        deadline = time.monotonic() + 60
        while source.rx.head == source.rx.tail:
            assert time.monotonic() < deadline
            source.sync()
        i, o = source.rx.head, target.tx.head
        got, spare = source.rx.slot(i), target.tx.slot(o)
        target.tx.fill(o, buf=got.buf, id=onward.id, len=got.len, offset=got.offset)
        source.rx.fill(i, buf=spare.buf)
        source.rx.set_head((i + 1) % source.rx.n)
        target.tx.set_head((o + 1) % target.tx.n)
        target.sync()
        source.sync()
        assert there_peer.recv(100) == b"%04d" % number
    assert three.stats()["bad_slots"] == 0
    for sock in (here_peer, here, there_peer, there):
        sock.close()


def test_a_buffer_named_on_two_rings_is_one_of_thems(three: RawPort) -> None:
    connections = [connect_pair() for _ in range(2)]
    ids = [three.attach_to(i, sock).id for i, (_peer, sock) in enumerate(connections)]
    first, second = three.pairs[:2]
    buf = first.put(first.tx.head, ids[0], b"mine")
    second.tx.fill(second.tx.head, buf=buf, id=ids[1], len=4)
    for pair in (first, second):
        pair.tx.set_head((pair.tx.head + 1) % pair.tx.n)
        pair.sync(SYNC_TX)
    assert first.tx.slot(first.tx.head - 1).events == 0
    slot = second.tx.slot(second.tx.head - 1)
    assert (slot.events, slot.err) == (REFUSED, errno.EPERM)
    assert connections[0][0].recv(100) == b"mine"
    for pair_of_sockets in connections:
        for sock in pair_of_sockets:
            sock.close()


def test_extra_buffers_are_sent_and_come_back(three: RawPort) -> None:
    """They go out with any slot; what the slot has instead is the application's after that."""
    peer, sock = connect_pair()
    id = three.attach(sock)
    extra = three.extra_buffers()
    before = set(users_buffers(three))
    for number in range(50):
        i = three.tx.head
        buf = extra.pop(0)
        at = three.tx.address(buf)
        three.memory[at : at + 4] = b"%04d" % number
        extra.append(three.tx.slot(i).buf)
        three.tx.fill(i, buf=buf, id=id, len=4)
        three.tx.set_head((i + 1) % three.tx.n)
        three.sync(SYNC_TX)
        assert three.tx.slot(i).events == 0
        assert peer.recv(4) == b"%04d" % number
    stats = three.stats()
    assert (stats["bad_slots"], stats["slots_sent"]) == (0, 50)
    after = {pair.tx.slot(i).buf for pair in three.pairs for i in range(16)} | set(extra)
    assert len(after) == len(before)
    peer.close()
    sock.close()


def test_an_extra_buffer_keeps_what_was_received(three: RawPort) -> None:
    """Given back with a receive slot in the place of its own, which stays the application's."""
    peer, sock = connect_pair()
    three.attach(sock)
    extra = three.extra_buffers()
    kept = []
    for number in range(4):
        peer.sendall(b"keep %d" % number)
        deadline = time.monotonic() + 60
        while three.rx.head == three.rx.tail:
            assert time.monotonic() < deadline
            three.sync()
        i = three.rx.head
        kept.append(three.rx.slot(i).buf)
        three.rx.fill(i, buf=extra[number])
        three.rx.set_head((i + 1) % three.rx.n)
    for _ in range(40):
        peer.sendall(b"over and over")
        hear(three, 13)
    for number, buf in enumerate(kept):
        at = three.rx.address(buf)
        assert three.memory[at : at + 6] == b"keep %d" % number
    assert three.stats()["bad_slots"] == 0
    peer.close()
    sock.close()
