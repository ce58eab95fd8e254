"""The socket of an attached connection: no payload that the ring took stays with it."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

from tests.guest.partial_slot import unacknowledged
from tests.guest.pattern import pattern
from tests.guest.raw import EOF, SYNC_POLL, SYNC_RX, RawPort
from tests.guest.wire import connect_pair
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guest.attached import Attached

FIONREAD = 0x541B
LONG, CHUNK = 4_000_000, 100_000
SO_MEMINFO = 55
RMEM_ALLOC = 0  # in what SO_MEMINFO tells


def queued(sock: socket.socket) -> int:
    """How many bytes the socket says that it has to be read."""
    count: int = struct.unpack("<i", fcntl.ioctl(sock, FIONREAD, bytes(4)))[0]
    return count


def memory(sock: socket.socket) -> int:
    """Memory charged to the socket for received data."""
    info = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)
    allocated: int = struct.unpack_from("<I", info, 4 * RMEM_ALLOC)[0]
    return allocated


def readable(sock: socket.socket) -> bool:
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLRDHUP)
    return bool(poller.poll(0))


def ss(sock: socket.socket) -> tuple[int, int]:
    """Recv-Q and Send-Q."""
    here, there = (address[1] for address in (sock.getsockname(), sock.getpeername()))
    command = ["ss", "-Htn", f"sport = :{here} and dport = :{there}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (line,) = done.stdout.splitlines()
    received, sent = map(int, line.split()[1:3])
    return received, sent


def test_data_in_the_ring_has_left_the_socket_s_queue(
    two: Attached, socket_pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    """Neither while a stream flows nor after it, however much that was."""
    peer, sock = socket_pair()
    port = two.port
    id = port.attach(sock)

    def send() -> None:
        for position in range(0, LONG, CHUNK):
            peer.sendall(pattern(3, position, CHUNK))

    sender = threading.Thread(target=send)
    sender.start()
    got = most = 0
    while got < LONG:
        for source, data, events, _err in port.receive():
            assert (source, events) == (id, 0)
            assert data == pattern(3, got, len(data))
            got += len(data)
        most = max(most, queued(sock))
    sender.join()
    assert most <= sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert queued(sock) == memory(sock) == 0
    assert ss(sock) == (0, 0)
    assert not readable(sock)

    port.send(id, b"and back")
    assert peer.recv(100) == b"and back"
    eventually(lambda: unacknowledged(sock) == 0, lambda: unacknowledged(sock))
    assert ss(sock) == (0, 0)
    assert unacknowledged(peer) == 0
    for end in (peer, sock):
        end.close()


def test_small_messages_leave_nothing(two: Attached) -> None:
    """Many times more of them than a receive buffer would hold."""
    port, sock = two.port, two.sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    for number in range(2000):
        word = b"%064d" % number
        two.peer.sendall(word)
        got = b""
        while got != word:
            got += b"".join(data for _id, data, _events, _err in port.receive())
        assert queued(sock) == 0
        assert not readable(sock)
    assert memory(sock) == 0
    assert ss(sock) == (0, 0)


def test_data_that_waits_in_tcp_is_shown(two: Attached) -> None:
    """A paused connection: its bytes are in TCP, and the socket says how many."""
    port, sock = two.port, two.sock
    port.pause(two.id)
    two.peer.sendall(bytes(5000))
    eventually(lambda: queued(sock) == 5000, lambda: queued(sock))
    assert ss(sock)[0] == 5000
    assert readable(sock)
    assert memory(sock) > 0
    assert port.receive() == []
    port.pause(two.id, 0)
    got = 0
    while got < 5000:
        got += sum(len(data) for _id, data, _events, _err in port.receive())
    assert queued(sock) == memory(sock) == 0
    assert ss(sock) == (0, 0)
    assert not readable(sock)


def test_data_that_a_full_ring_leaves_in_tcp_is_shown() -> None:
    peer, sock = connect_pair()
    stream = pattern(4, 0, 40_000)
    with RawPort(4, 4) as port:
        id = port.attach(sock)
        peer.sendall(stream)
        eventually(lambda: queued(sock) == len(stream) - 3 * 4096, lambda: queued(sock))
        assert ss(sock)[0] == len(stream) - 3 * 4096
        got = b""
        while len(got) < len(stream):
            # Data moves into the ring in the sync after the one that reported it.
            got += b"".join(data for source, data, _e, _x in port.receive() if source == id)
            port.sync(SYNC_RX | SYNC_POLL)
        assert got == stream
        assert queued(sock) == memory(sock) == 0
        assert ss(sock) == (0, 0)
        assert not readable(sock)
    peer.close()
    sock.close()


def test_what_comes_after_the_application_has_ended_reading_is_received(two: Attached) -> None:
    """As by recv() of an ordinary socket, which returns nothing first and then what comes."""
    found: list[tuple[bytes, int]] = []

    def comes(what: tuple[bytes, int]) -> bool:
        found.extend((data, event) for id, data, event, _e in two.port.receive() if id == two.id)
        return found[-1:] == [what]

    two.sock.shutdown(socket.SHUT_RD)
    eventually(lambda: comes((b"", EOF)), lambda: found)
    two.peer.sendall(b"all the same")
    eventually(lambda: comes((b"all the same", 0)), lambda: found)
    assert len(found) == 2


def test_pollers_of_the_socket_are_not_woken_by_the_ring(two: Attached) -> None:
    """A level-triggered watch of the socket does not spin: it tells of the end only."""
    port, sock = two.port, two.sock
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
        for _ in range(50):
            two.peer.sendall(b"for the ring")
            got = b""
            while got != b"for the ring":
                got += b"".join(data for _id, data, _events, _err in port.receive())
            assert epoll.poll(0) == []
        assert epoll.poll(0.2) == []
        two.peer.shutdown(socket.SHUT_WR)
        ((fd, events),) = epoll.poll(60)
        assert fd == sock.fileno()
        assert events & select.EPOLLRDHUP
