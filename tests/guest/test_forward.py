"""Forwarding hands on the page that was received, and never loses or mixes up a byte."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from stackmap import Event, RingConnection, RingPort, Segment
from stackmap._fast import LentSegment
from stackmap._kept import LentKept
from stackmap._ring_c import ffi
from tests.guest.raw import Ring
from tests.guest.wire import NIC, connect_pair, connect_pair_from_here, peer_loses
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60.0
TEN_MB = 10 << 20


class Rings:
    """The rings of a library's port as the ABI shows them."""

    def __init__(self, port: RingPort) -> None:
        self.memory = memoryview(ffi.buffer(port._kernel.shared.mem, port._kernel.shared.size))
        base = int(ffi.cast("uintptr_t", port._kernel.shared.mem))
        self.tx = Ring(
            self.memory, int(ffi.cast("uintptr_t", port.rings[0]._pair.struct.tx)) - base
        )
        self.rx = Ring(
            self.memory, int(ffi.cast("uintptr_t", port.rings[0]._pair.struct.rx)) - base
        )


def receive_one(port: RingPort) -> Segment:
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline
        for segment in port.exchange(0.1):
            if not segment.event:
                return segment


def test_the_page_that_was_received_is_the_page_that_is_sent() -> None:
    with RingPort(NIC, tx_slots=16, rx_slots=16) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        rings = Rings(port)
        for number in range(40):
            text = b"%04d" % number * 800
            peer.sendall(text)
            segment = receive_one(port)
            place = rings.rx.head
            received = rings.rx.slot(place)
            spare = rings.tx.slot(rings.tx.head)
            assert spare.buf != received.buf
            connection.forward(segment)
            sent = rings.tx.slot(rings.tx.head)
            assert (sent.buf, sent.len, sent.offset) == (received.buf, 3200, received.offset)
            assert rings.rx.slot(place).buf == spare.buf
            at = rings.rx.address(received.buf)
            assert bytes(rings.memory[at : at + 3200]) == text
            port.exchange()
            assert receive_exactly(peer, 3200) == text
        assert port.stats().bad_slots == 0
        rings.memory.release()
        peer.close()


def test_a_slice_in_use_is_refused_until_it_is_gone() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        peer.sendall(b"x" * 3000)
        segment = receive_one(port)
        piece = segment.view[10:20]
        with pytest.raises(BufferError, match=str(connection.id)):
            connection.forward(segment)
        assert bytes(piece) == b"x" * 10
        del piece
        connection.forward(segment)
        with pytest.raises(ValueError, match="released"):
            connection.forward(segment)
        port.exchange()
        assert receive_exactly(peer, 3000) == b"x" * 3000
        peer.close()


def test_what_an_earlier_exchange_received_is_gone() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        peer.sendall(b"x" * 3000)
        segment = receive_one(port)
        port.exchange()
        with pytest.raises(ValueError, match="released"):
            connection.forward(segment)
        assert port.stats().slots_sent == 0
        peer.close()


@pytest.mark.parametrize("viewed", [False, True])
def test_a_small_payload_that_the_ring_has_not_room_for(viewed: bool) -> None:
    with RingPort(NIC, tx_slots=4, rx_slots=8) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        peer.sendall(bytes(range(200)))
        segment = receive_one(port)
        if viewed:
            assert len(segment.view) == 200
        filling = bytes(3 * 4096 - 10)
        connection.write(filling)
        connection.forward(segment)
        connection.write(b"end")
        with pytest.raises(ValueError, match="released"):
            connection.forward(segment)
        while connection.pending:
            port.exchange(0.01)
        port.exchange()
        assert receive_exactly(peer, len(filling) + 203) == filling + bytes(range(200)) + b"end"
        assert connection.bytes_written == len(filling) + 203
        peer.close()


def test_between_ports() -> None:
    """Payload that another port received is copied."""
    with RingPort(NIC) as source, RingPort(NIC) as target:
        here_peer, here = connect_pair()
        there_peer, there = connect_pair()
        source.attach(here)
        onward = target.attach(there)
        here_peer.sendall(b"far " * 1000)
        got = 0
        while got < 4000:
            segment = receive_one(source)
            got += len(segment.view)
            onward.forward(segment)
            target.exchange()
        assert receive_exactly(there_peer, 4000) == b"far " * 1000
        assert source.stats().bad_slots == target.stats().bad_slots == 0
        here_peer.close()
        there_peer.close()


# -- keeping --


@pytest.mark.parametrize("size", [1, 512, 513, 2048, 2049, 4000])
def test_large_payloads_are_lent_and_others_are_copied(size: int) -> None:
    with RingPort(NIC, tx_slots=16, rx_slots=16) as port:
        peer, sock = connect_pair()
        port.attach(sock)
        text = bytes(range(250)) * 16
        peer.sendall(text[:size])
        segment = receive_one(port)
        assert segment.tobytes() == text[:size]
        assert isinstance(segment, LentSegment) == (size > 2048)
        peer.close()


def test_what_is_kept_outlives_exchanges_and_is_sent_as_it_is() -> None:
    """Three pages are kept, and two more payloads copied, while the rings go round."""
    with RingPort(NIC, tx_slots=8, rx_slots=8, spare_buffers=8, extra_buffers=3) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        rings = Rings(port)
        texts = [b"%04d" % number * 800 for number in range(5)]
        kept = []
        for text in texts:
            peer.sendall(text)
            segment = receive_one(port)
            kept.append(port.keep(segment))
            with pytest.raises(ValueError, match="released"):
                port.keep(segment)
        assert [isinstance(k, LentKept) for k in kept] == [True, True, True, False, False]
        for number in range(100):
            peer.sendall(b"%04d" % number * 300)
            connection.forward(receive_one(port))
            port.exchange()
            assert receive_exactly(peer, 1200) == b"%04d" % number * 300
        assert [bytes(k.view) for k in kept] == texts
        with pytest.raises(BufferError, match="3 kept"):
            port.close()
        for k, text in zip(kept, texts, strict=True):
            at = rings.tx.head
            buffer = k._page.buffer if isinstance(k, LentKept) and k._page else None
            connection.forward(k)
            assert buffer in (None, rings.tx.slot(at).buf)
            with pytest.raises(ValueError, match="released"):
                connection.forward(k)
            k.release()
            port.exchange()
            assert receive_exactly(peer, 3200) == text
        # the extra buffers are back, though others than before
        peer.sendall(texts[0])
        with port.keep(receive_one(port)) as again:
            assert isinstance(again, LentKept)
            piece = again.view[:4]
            with pytest.raises(BufferError, match="in use"):
                again.release()
            del piece
        assert port.stats().bad_slots == 0
        rings.memory.release()
        peer.close()


def pump(port: RingPort, onward: dict[RingConnection, RingConnection]) -> int:
    """Forward until all connections have closed; returns how many pages changed rings."""
    swapped = 0
    closed = 0
    deadline = time.monotonic() + 2 * PATIENCE
    while closed < len(onward):
        assert time.monotonic() < deadline
        for segment in port.exchange(0.1):
            source = segment.connection
            assert isinstance(source, RingConnection)
            if segment.event & Event.EOF:
                onward[source].shutdown_write()
            elif not segment.event:
                onward[source].forward(segment)
                swapped += isinstance(segment, LentSegment) and segment.lender is None
                if onward[source].pending > 1 << 20:
                    source.pause_reading()
            elif segment.event & Event.CLOSED:
                closed += 1
            if segment.event & Event.WRITABLE:
                for other, target in onward.items():
                    if target is source:
                        other.resume_reading()
    return swapped


def send_all(sock: socket.socket, data: bytes) -> None:
    sizes = random.Random(5)
    at = 0
    while at < len(data):
        size = sizes.randrange(1, 60_000)
        sock.sendall(data[at : at + size])
        at += size
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket, into: bytearray) -> None:
    while data := sock.recv(1 << 16):
        into += data


@pytest.mark.timeout(200)
@pytest.mark.parametrize("slots", [pytest.param(1024, marks=pytest.mark.long), 8])
def test_echo_of_ten_megabytes_under_loss(slots: int) -> None:
    data = random.Random(1).randbytes(TEN_MB)
    answer = bytearray()
    peer, sock = connect_pair_from_here(socket.AF_INET6)
    with RingPort(NIC, tx_slots=slots, rx_slots=slots) as port, closing(peer):
        connection = port.attach(sock)
        threads = [
            threading.Thread(target=send_all, args=(peer, data)),
            threading.Thread(target=read_all, args=(peer, answer)),
        ]
        with peer_loses(1):
            for thread in threads:
                thread.start()
            swapped = pump(port, {connection: connection})
            for thread in threads:
                thread.join(PATIENCE)
        assert bytes(answer) == data
        assert swapped > 100
        assert port.stats().bad_slots == 0


@pytest.mark.timeout(200)
def test_proxy_of_ten_megabytes_both_ways_under_loss() -> None:
    data = [random.Random(2).randbytes(TEN_MB), random.Random(3).randbytes(TEN_MB // 4)]
    got = [bytearray(), bytearray()]
    near_peer, near = connect_pair()
    far_peer, far = connect_pair_from_here(socket.AF_INET6)
    work: list[Callable[[], None]] = [
        lambda: send_all(near_peer, data[0]),
        lambda: send_all(far_peer, data[1]),
        lambda: read_all(far_peer, got[0]),
        lambda: read_all(near_peer, got[1]),
    ]
    with RingPort(NIC) as port, closing(near_peer), closing(far_peer):
        one, other = port.attach(near), port.attach(far)
        threads = [threading.Thread(target=task) for task in work]
        with peer_loses(1):
            for thread in threads:
                thread.start()
            swapped = pump(port, {one: other, other: one})
            for thread in threads:
                thread.join(PATIENCE)
        assert bytes(got[0]) == data[0]
        assert bytes(got[1]) == data[1]
        assert swapped > 100
        assert port.stats().bad_slots == 0
