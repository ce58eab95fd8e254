"""Small slots: TCP takes, merges and acknowledges them as it does small writes of a socket."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from tests.guest.commands import sh
from tests.guest.pattern import pattern
from tests.guest.raw import REFUSED, WRITABLE, RawPort
from tests.guest.wire import (
    ADDRESS,
    NIC,
    PEER_ADDRESS,
    connect_pair,
    in_peer_namespace,
    peer_is_late_by,
    peer_loses,
)
from tests.receiving import receive_exactly
from tests.reset import reset_on_close
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZES = (1, 64, 100, 300, 500, 700, 1000, 2047, 2048, 3000, 4095, 4096)
FEW, WRITES = 60, 1000
#: Of these, CI tries the smallest, the largest, and those at which something changes.
TRIED = [
    pytest.param(size, marks=[pytest.mark.long] if size in {64, 300, 700, 3000, 4095} else [])
    for size in SIZES
]
#: Bytes that any send buffer has space for, in whatever segments.
FITS = 20_000
#: A buffer that is full is so to within the last segments that TCP makes together: where the first
#: ones end, which depends on how soon they are sent, decides whether those fit.
LAST_SEGMENTS = 3 * 1460
#: Where struct tcp_info has tcpi_total_retrans and tcpi_data_segs_out.
TOTAL_RETRANS, DATA_SEGS_OUT = 100, 152
TCP_CORK, TCP_MD5SIG = 3, 14


def segments_out(sock: socket.socket) -> int:
    """How many segments with payload TCP has sent on a socket, each counted once."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
    sent, again = (
        int.from_bytes(raw[at : at + 4], "little") for at in (DATA_SEGS_OUT, TOTAL_RETRANS)
    )
    return sent - again


def small_port() -> RawPort:
    return RawPort(WRITES + 1, 16, spare=4 * WRITES)


def put_all(port: RawPort, id: int, pieces: list[bytes]) -> None:
    """Submit slots in one sync."""
    first = port.tx.head
    for number, piece in enumerate(pieces):
        port.put((first + number) % port.tx.n, id, piece)
    port.tx.set_head((first + len(pieces)) % port.tx.n)
    port.sync_all()


def taken_by_a_socket(pieces: list[bytes]) -> int:
    """How many bytes TCP takes in single writes, while no ACK comes."""
    peer, sock = connect_pair()
    with closing(peer), closing(sock), peer_loses(100):
        sock.setblocking(False)
        taken = 0
        with suppress(BlockingIOError):
            for piece in pieces:
                taken += sock.send(piece)
        return taken


def taken_by_a_ring(pieces: list[bytes]) -> int:
    """The same of one sync with a slot for each."""
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port, peer_loses(100):
        put_all(port, port.attach(sock), pieces)
        return port.stats()["tx_bytes"]


@pytest.mark.parametrize("size", TRIED)
def test_a_sync_takes_what_a_socket_takes(size: int) -> None:
    pieces = [bytes(size)] * FEW
    assert taken_by_a_ring(pieces) >= taken_by_a_socket(pieces) - LAST_SEGMENTS * (
        size * FEW > FITS
    )


@pytest.mark.parametrize("size", TRIED)
def test_a_sync_fills_the_send_buffer_as_a_socket_does(size: int) -> None:
    pieces = [bytes(size)] * WRITES
    assert taken_by_a_ring(pieces) >= taken_by_a_socket(pieces) - LAST_SEGMENTS


def test_a_sync_fills_the_send_buffer_with_sizes_that_take_turns() -> None:
    pieces = [bytes(SIZES[number % len(SIZES)]) for number in range(WRITES)]
    assert taken_by_a_ring(pieces) >= taken_by_a_socket(pieces) - LAST_SEGMENTS


# -- segments --

PIECES = [pattern(7, at, 20) for at in range(0, 60 * 20, 20)]
#: Segments that they may make.  TCP's counters of those that it sends again while the peer is late
#: are inexact: a control was seen with fewer segments out than sent again.
MERGED = 3


def held_by_nagle(_sock: socket.socket, _peer: socket.socket, send: Callable[[], None]) -> None:
    """One is under way, and what follows waits for its ACK."""
    with peer_is_late_by(1000):
        send()


def held_by_cork(sock: socket.socket, _peer: socket.socket, send: Callable[[], None]) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, TCP_CORK, 1)
    send()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_CORK, 0)


def held_by_cork_between_full_ones(
    sock: socket.socket, peer: socket.socket, send: Callable[[], None]
) -> None:
    """With Nagle's algorithm off, too: an application that corks wants full segments."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held_by_cork(sock, peer, send)


def segments_of_a_socket(hold: Callable[..., None], pieces: list[bytes]) -> int:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        before = segments_out(sock)

        def send() -> None:
            for piece in pieces:
                sock.send(piece)

        hold(sock, peer, send)
        assert receive_exactly(peer, len(b"".join(pieces))) == b"".join(pieces)
        return segments_out(sock) - before


def segments_of_a_ring(hold: Callable[..., None], pieces: list[bytes]) -> int:
    """A sync for each slot."""
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port:
        id = port.attach(sock)
        before = segments_out(sock)

        def send() -> None:
            for piece in pieces:
                port.send(id, piece)

        hold(sock, peer, send)
        assert receive_exactly(peer, len(b"".join(pieces))) == b"".join(pieces)
        return segments_out(sock) - before


@pytest.mark.parametrize(
    "hold", [held_by_nagle, held_by_cork, held_by_cork_between_full_ones], ids=lambda f: f.__name__
)
def test_slots_of_several_syncs_are_merged(hold: Callable[..., None]) -> None:
    by_socket = segments_of_a_socket(hold, PIECES)
    assert by_socket <= MERGED, "the control sends single pieces, too"
    assert segments_of_a_ring(hold, PIECES) <= max(by_socket, MERGED - 1)


@pytest.mark.parametrize("last", [20, 4096])
def test_a_mix_of_sizes_in_one_sync_sends_no_short_segment_between(last: int) -> None:
    """Pages by reference and small slots by a copy make the segments of one writev()."""
    pieces = [pattern(5, 0, 4096), pattern(5, 4096, 30), pattern(5, 4126, 4096)]
    pieces.append(pattern(5, 8222, last))
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = segments_out(sock)
        sock.sendmsg(pieces)
        assert receive_exactly(peer, len(b"".join(pieces))) == b"".join(pieces)
        by_socket = segments_out(sock) - before
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        id = port.attach(sock)
        before = segments_out(sock)
        put_all(port, id, pieces)
        assert receive_exactly(peer, len(b"".join(pieces))) == b"".join(pieces)
        assert segments_out(sock) - before <= by_socket


# -- buffers --


def pinned(port: RawPort) -> int:
    return port.stats()["pinned"]


def released(port: RawPort) -> tuple[int, int]:
    stats = port.stats()
    return stats["released_ack"], stats["released_reset"]


@pytest.mark.parametrize("size", [1, 100, 4095, 4096])
def test_a_buffer_is_free_with_its_ack_and_not_before(size: int) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        id = port.attach(sock)
        with peer_loses(100):
            for _ in range(3):
                port.send(id, bytes(size))
            receive_exactly(peer, 3 * size)
            assert (pinned(port), released(port)) == (3, (0, 0))
        eventually(lambda: not pinned(port), port.stats)
        assert released(port) == (3, 0)


def test_a_buffer_waits_for_its_ack_after_detaching() -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port, small_port() as other:
        id = port.attach(sock)
        with peer_loses(100):
            port.send(id, b"one")
            port.detach(id)
            second = other.attach(sock)
            other.send(second, b"two")
            assert receive_exactly(peer, 6) == b"onetwo"
            assert (pinned(port), pinned(other)) == (1, 1)
        eventually(lambda: not pinned(port) and not pinned(other), port.stats)
        assert released(port) == released(other) == (1, 0)


def test_a_buffer_waits_for_its_ack_after_close() -> None:
    peer, sock = connect_pair()
    with closing(peer), small_port() as port:
        id = port.attach(sock)
        with peer_loses(100):
            port.send(id, b"orphan")
            sock.close()
            assert receive_exactly(peer, 6) == b"orphan"
            assert pinned(port) == 1
        eventually(lambda: not pinned(port), port.stats)
        assert released(port) == (1, 0)


@pytest.fixture
def late_retransmissions() -> Iterator[None]:
    """TCP sends nothing again for half a minute, or its ACK would come once the peer's pass."""
    route = f"{PEER_ADDRESS}/32 dev {NIC}"
    sh(f"ip route add {route} rto_min 30s")
    yield
    sh(f"ip route del {route}")


@pytest.mark.usefixtures("late_retransmissions")
@pytest.mark.parametrize("detached", [False, True])
def test_a_reset_releases_copied_buffers(detached: bool) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port:
        id = port.attach(sock)
        # No ACK passes, but then the reset does.
        with peer_loses(100):
            port.send(id, b"lost")
            assert receive_exactly(peer, 4) == b"lost"
            if detached:
                port.detach(id)
        # The peer's FIN would acknowledge; its RST says nothing of what it has.
        assert released(port) == (0, 0)
        reset_on_close(peer)
        peer.close()
        eventually(lambda: not pinned(port), port.stats)
        assert sum(released(port)) == 1


def test_a_disconnected_socket_releases_copied_buffers() -> None:
    """connect() with AF_UNSPEC, which only a detached socket may."""
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port:
        id = port.attach(sock)
        with peer_loses(100):
            port.send(id, b"lost")
            port.detach(id)
            assert pinned(port) == 1
            unspecified(sock)
            assert pinned(port) == 0
        assert released(port) == (0, 1)


def unspecified(sock: socket.socket) -> None:
    nowhere = struct.pack("<H14x", socket.AF_UNSPEC)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), nowhere, len(nowhere)) == 0


def test_copied_buffers_of_a_refused_connection_make_it_writable_again() -> None:
    """The last ACK frees the buffers before TCP frees its own memory: it counts all the same."""
    peer, sock = connect_pair()
    with closing(peer), closing(sock), small_port() as port:
        id = port.attach(sock)
        for _ in range(5):
            with peer_loses(100):
                while True:
                    first = port.tx.head
                    put_all(port, id, [bytes(300)] * 100)
                    last = port.tx.slot((first + 99) % port.tx.n)
                    if last.events & REFUSED:
                        assert last.err == errno.EAGAIN
                        break

            def read_all() -> bool:
                peer.setblocking(False)
                with suppress(BlockingIOError):
                    while peer.recv(1 << 20):
                        pass
                return any(events & WRITABLE for _i, _d, events, _e in port.receive())

            eventually(read_all, port.stats)
        eventually(lambda: read_all() or not pinned(port), port.stats)


# -- other decisions of TCP --


def test_the_send_buffer_grows_only_where_it_limits() -> None:
    """Its size after small exchanges is what it is after those of a socket."""
    sizes = []
    for by_ring in (False, True):
        peer, sock = connect_pair()
        with closing(peer), closing(sock), small_port() as port:
            id = port.attach(sock) if by_ring else 0
            for _ in range(200):
                if by_ring:
                    port.send(id, bytes(4096))
                else:
                    sock.sendall(bytes(4096))
                receive_exactly(peer, 4096)
            sizes.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    assert sizes[1] == sizes[0]


def test_a_full_page_waits_for_its_ack_where_tcp_must_copy_it() -> None:
    """TCP's MD5 option takes segmentation offload away, and without scattered pages TCP copies."""
    sh(f"ethtool -K {NIC} sg off; sysctl -qw net.ipv4.tcp_timestamps=0")
    try:
        peer, sock = connect_pair_with_md5()
        with closing(peer), closing(sock), small_port() as port:
            id = port.attach(sock)
            with peer_loses(100):
                port.send(id, pattern(1, 0, 4096))
                assert receive_exactly(peer, 4096) == pattern(1, 0, 4096)
                assert (pinned(port), released(port)) == (1, (0, 0))
            eventually(lambda: not pinned(port), port.stats)
            assert released(port) == (1, 0)
    finally:
        sh(f"ethtool -K {NIC} sg on; sysctl -qw net.ipv4.tcp_timestamps=1")


def connect_pair_with_md5() -> tuple[socket.socket, socket.socket]:
    def md5(address: str) -> bytes:
        # struct tcp_md5sig: the address, flags, prefix length, key length, ifindex, key
        head = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(address))
        return head.ljust(128, b"\0") + struct.pack("=BBHi80s", 0, 0, 3, 0, b"key")

    with socket.create_server((ADDRESS, 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, md5(PEER_ADDRESS))
        peer = in_peer_namespace()
        peer.settimeout(60.0)
        peer.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, md5(ADDRESS))
        peer.connect(listener.getsockname())
        accepted, _address = listener.accept()
    return peer, accepted
