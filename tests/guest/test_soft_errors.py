"""Errors that end no connection: with IP_RECVERR, what ICMP says is told, and nothing is lost."""

from __future__ import annotations

import errno
import socket
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.guest.attached import Attached
from tests.guest.partial_slot import end_by_closing, end_by_detaching, end_by_shutdown, leave_a_rest
from tests.guest.pattern import pattern
from tests.guest.raw import ERROR, REFUSED, SYNC_TX, RawPort
from tests.guest.wire import ADDRESS, NIC, connect_pair, peer_namespace
from tests.receiving import receive_exactly
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ETH_P_IP = 0x0800
IP_RECVERR = 11
UNREACHABLE, HOST, PORT = 3, 1, 3
PATIENCE = 60.0


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Heard:
    """Packets of one connection at the peer's NIC, to answer with ICMP errors."""

    def __init__(self, wire: socket.socket, sock: socket.socket) -> None:
        self._wire = wire
        self._ports = struct.pack(">HH", sock.getsockname()[1], sock.getpeername()[1])

    def complain(self, code: int) -> None:
        """Send an ICMP error about the newest byte: a router says that the peer is not there."""
        packet = self._newest()
        head = struct.pack(">BBHI", UNREACHABLE, code, 0, 0)
        head = struct.pack(">BBHI", UNREACHABLE, code, checksum(head + packet), 0)
        with peer_namespace():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with raw:
            raw.sendto(head + packet, (ADDRESS, 0))

    def _newest(self) -> bytes:
        """The beginning of the packet that would come next: TCP believes in no other."""
        found, end = b"", 0
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                heard = self._wire.recv(65536)
            except BlockingIOError:
                if found:
                    return found[:24] + struct.pack(">I", end)
                assert time.monotonic() < deadline, "nothing was heard of the connection"
                continue
            if heard[9] == socket.IPPROTO_TCP and heard[20:24] == self._ports:
                size, seq = struct.unpack_from(">2xH20xI", heard)
                ends = (seq + size - 20 - 4 * (heard[32] >> 4)) % (1 << 32)
                if not found or 0 < (ends - end) % (1 << 32) < 1 << 31:
                    found, end = heard, ends


@contextmanager
def heard(sock: socket.socket) -> Iterator[Heard]:
    """Let the socket be told of errors, and listen for something to have one about."""
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    with peer_namespace():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
    with wire:
        wire.bind((NIC, ETH_P_IP))
        wire.setblocking(False)
        yield Heard(wire, sock)


def await_error(port: RawPort, id: int) -> int:
    """The errno of the connection's next ERROR event; there is no other event."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for source, _data, events, err in port.receive():
            if source == id and events:
                assert events == ERROR
                return err
        assert time.monotonic() < deadline, "no event"


def say_hello(two: Attached) -> None:
    two.port.send(two.id, b"hello")
    assert two.peer.recv(100) == b"hello"


def test_nothing_overtakes_what_an_error_met(two: Attached) -> None:
    """Two groups of a connection in one sync: the error is no reason to refuse the first."""
    port = two.port
    with heard(two.sock) as wire:
        say_hello(two)
        wire.complain(HOST)
        assert await_error(port, two.id) == errno.EHOSTUNREACH
        first = port.tx.head
        whose = [two.id, two.honest] * 4
        for k, id in enumerate(whose):
            port.put((first + k) % port.tx.n, id, bytes([k]))
        port.tx.set_head((first + len(whose)) % port.tx.n)
        port.sync(SYNC_TX)
        for k in range(len(whose)):
            assert not port.tx.slot((first + k) % port.tx.n).events & REFUSED, k
        assert receive_exactly(two.peer, 4) == bytes([0, 2, 4, 6])
        assert receive_exactly(two.honest_peer, 4) == bytes([1, 3, 5, 7])
        two.check_honest()


@pytest.mark.parametrize("end", [end_by_shutdown, end_by_detaching, end_by_closing])
def test_the_rest_of_a_slot_survives_an_error(
    two: Attached, end: Callable[[Attached], None]
) -> None:
    stream = pattern(9, 0, 1 << 20)
    with heard(two.sock) as wire:
        accepted = leave_a_rest(two, stream)
        wire.complain(HOST)
        assert await_error(two.port, two.id) == errno.EHOSTUNREACH
        end(two)
        got = b""
        while data := two.peer.recv(65536):
            got += data
        assert got == stream[:accepted]


def test_each_error_is_reported(two: Attached) -> None:
    port = two.port
    with heard(two.sock) as wire:
        say_hello(two)
        wire.complain(HOST)
        assert await_error(port, two.id) == errno.EHOSTUNREACH
        say_hello(two)
        wire.complain(PORT)
        assert await_error(port, two.id) == errno.ECONNREFUSED
        reset_on_close(two.peer)
        two.peer.close()
        assert await_error(port, two.id) == errno.ECONNRESET


def test_an_error_from_before_attaching_is_told(two: Attached) -> None:
    peer, sock = connect_pair()
    with peer, sock, heard(sock) as wire:
        sock.sendall(b"ordinary")
        assert peer.recv(100) == b"ordinary"
        wire.complain(HOST)
        id = two.port.attach(sock)
        assert await_error(two.port, id) == errno.EHOSTUNREACH
        two.port.send(id, b"attached")
        assert peer.recv(100) == b"attached"
