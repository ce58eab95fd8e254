"""Listeners attached to a port: each accepted connection is in a ring from its first byte."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guest.children import Child
from tests.guest.commands import sh
from tests.guest.locked_socket import WaitingCall, under_way
from tests.guest.raw import (
    ATTACH_LISTENER,
    CLOSED,
    EOF,
    ERROR,
    OPEN,
    RING_ANY,
    SMIOC_STATS,
    SYNC_RX,
    RawPair,
    RawPort,
    Received,
)
from tests.guest.wire import (
    ADDRESS,
    connect_pair,
    in_peer_namespace,
    peer_is_late_by,
    peer_namespace,
)
from tests.reset import reset_on_close
from tests.waiting import eventually

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator

TCP_SYN_RECV, TCP_ULP = 3, 31
FAST_OPEN = Path("/proc/sys/net/ipv4/tcp_fastopen")

Listening = tuple[socket.socket, "Callable[[], socket.socket]"]


def code(call: Callable[..., object], *arguments: object) -> int:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno or 0


def hear(pair: RawPair, done: Callable[[list[Received]], bool]) -> list[Received]:
    """Receive until it is enough."""
    slots: list[Received] = []
    deadline = time.monotonic() + 60
    while not done(slots):
        assert time.monotonic() < deadline, slots
        slots += pair.receive()
    return slots


def opened(slots: list[Received]) -> list[tuple[int, int, int, int, bytes]]:
    """For each OPEN: id, listener, family, and the peer's port and address."""
    found = []
    for id, data, event, _err in slots:
        if event == OPEN:
            listener, _record, family, port, address = struct.unpack("<IIH2s16s", data)
            found.append((id, listener, family, int.from_bytes(port, "big"), address))
    return found


def test_a_connection_opens_with_its_address(
    port: RawPort, listening: Callable[[], Listening]
) -> None:
    listener, connect = listening()
    attached = port.attach_to(0, listener, ATTACH_LISTENER)
    assert (attached.ring, attached.record) == (0, 0)
    peers = [connect() for _ in range(10)]
    for number, peer in enumerate(peers):
        peer.sendall(b"before accept %d" % number)
    accepted = [listener.accept() for _ in peers]
    slots = hear(port, lambda slots: sum(len(d) for _i, d, e, _x in slots if not e) == 150)
    opens = opened(slots)
    assert len({id for id, *_ in opens}) == 10
    for (id, of, family, number, address), (sock, name) in zip(opens, accepted, strict=True):
        assert (of, family, number) == (attached.id, sock.family, name[1])
        packed = socket.inet_pton(sock.family, name[0])
        assert address == packed.ljust(16, b"\0")
        first = next(slot for slot in slots if slot[0] == id)
        assert first[2] == OPEN
        assert sock.getpeername() == name
        port.send(id, b"hello")
        assert code(sock.recv, 10) == errno.EBUSY
    for peer in peers:
        assert peer.recv(5) == b"hello"
        peer.close()
    for sock, _name in accepted:
        sock.close()
    listener.close()


def test_the_pair_that_was_chosen() -> None:
    with RawPort(64, 64, rings=2) as port, socket.create_server((ADDRESS, 0)) as listener:
        port.attach_to(1, listener, ATTACH_LISTENER)
        peers = [in_peer_namespace() for _ in range(5)]
        for peer in peers:
            peer.connect(listener.getsockname())
        accepted = [listener.accept()[0] for _ in peers]
        assert len(opened(hear(port.pairs[1], lambda slots: len(slots) == 5))) == 5
        assert port.receive() == []
        for sock in (*peers, *accepted):
            sock.close()


def test_any_pair() -> None:
    with RawPort(64, 64, rings=2) as port, socket.create_server((ADDRESS, 0)) as listener:
        port.attach_to(RING_ANY, listener, ATTACH_LISTENER)
        peers = [in_peer_namespace() for _ in range(6)]
        for peer in peers:
            peer.connect(listener.getsockname())
        accepted = [listener.accept() for _ in peers]
        slots = [pair.receive() for pair in port.pairs]
        found = [number for some in slots for _i, _l, _f, number, _a in opened(some)]
        assert [len(some) for some in slots] == [3, 3]
        assert sorted(found) == sorted(name[1] for _sock, name in accepted)
        for sock in (*peers, *(sock for sock, _name in accepted)):
            sock.close()


def test_a_peer_that_is_gone_before_it_was_accepted(
    port: RawPort, listening: Callable[[], Listening]
) -> None:
    """Its words and its FIN come in order all the same."""
    listener, connect = listening()
    port.attach_to(0, listener, ATTACH_LISTENER)
    peer = connect()
    peer.sendall(b"last words")
    peer.close()
    time.sleep(0.1)
    sock, _name = listener.accept()
    slots = hear(port, lambda slots: bool(slots) and bool(slots[-1][2] & EOF))
    assert [(data if not event else b"", event) for _i, data, event, _x in slots] == [
        (b"", OPEN), (b"last words", 0), (b"", EOF)
    ]  # fmt: skip
    sock.close()
    listener.close()


def test_detaching_the_listener(port: RawPort, listening: Callable[[], Listening]) -> None:
    listener, connect = listening()
    attached = port.attach_to(0, listener, ATTACH_LISTENER)
    one, two = connect(), connect()
    first, _name = listener.accept()
    ((id, *_),) = opened(hear(port, lambda slots: len(slots) == 1))
    port.detach(attached.id)
    second, _name = listener.accept()
    two.sendall(b"to the socket")
    assert second.recv(100) == b"to the socket"
    one.sendall(b"to the ring")
    hear(port, lambda slots: (id, b"to the ring", 0, 0) in slots)
    assert code(port.detach, attached.id) == errno.ENOENT
    again = port.attach_to(0, listener, ATTACH_LISTENER)
    assert again.id != attached.id
    for sock in (one, two, first, second, listener):
        sock.close()


def test_the_port_closes(listening: Callable[[], Listening]) -> None:
    listener, connect = listening()
    with RawPort() as port:
        port.attach_to(0, listener, ATTACH_LISTENER)
    peer = connect()
    sock, _name = listener.accept()
    peer.sendall(b"an ordinary one")
    assert sock.recv(100) == b"an ordinary one"
    with RawPort() as port:
        port.attach_to(0, listener, ATTACH_LISTENER)
    for s in (peer, sock, listener):
        s.close()


def test_sockets_that_cannot_be_attached_as_a_listener(port: RawPort) -> None:
    def refused(sock: socket.socket | int, ring: int = 0) -> int:
        return code(port.attach_to, ring, sock, ATTACH_LISTENER)

    peer, sock = connect_pair()
    with closing(peer), closing(sock), socket.socket() as fresh:
        assert refused(9999) == errno.EBADF
        assert refused(sock) == errno.EINVAL
        assert refused(fresh) == errno.EINVAL
        fresh.bind((ADDRESS, 0))
        assert refused(fresh) == errno.EINVAL
        foreign = in_peer_namespace()
        with foreign:
            foreign.bind(("127.0.0.1", 0))
            foreign.listen()
            assert refused(foreign) == errno.EXDEV
        with socket.socket(type=socket.SOCK_DGRAM) as udp:
            assert refused(udp) == errno.EOPNOTSUPP
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as mptcp:
            mptcp.bind((ADDRESS, 0))
            mptcp.listen()
            assert refused(mptcp) == errno.EOPNOTSUPP
    with socket.create_server((ADDRESS, 0)) as listener:
        assert refused(listener, 1) == errno.EINVAL
        assert code(port.attach_to, 0, listener, 2) == errno.EINVAL
        assert code(port.attach, listener) == errno.EINVAL
        port.attach_to(0, listener, ATTACH_LISTENER)
        assert refused(listener) == errno.EALREADY
        with RawPort() as other:
            assert code(other.attach_to, 0, listener, ATTACH_LISTENER) == errno.EALREADY
        listener.listen(7)  # a listener's own business goes on


def test_a_connection_that_is_reset_before_it_was_accepted(
    port: RawPort, listening: Callable[[], Listening]
) -> None:
    """accept() returns it, as the kernel's own does; its events say what became of it."""
    listener, connect = listening()
    port.attach_to(0, listener, ATTACH_LISTENER)
    peer = connect()
    reset_on_close(peer)
    here, number = peer.getpeername()[1], peer.getsockname()[1]
    peer.sendall(b"early")
    peer.close()
    eventually(lambda: number not in remote_ports(here), lambda: remote_ports(here))
    dead, name = listener.accept()
    slots = hear(port, lambda slots: len(slots) == 4)
    ((id, _l, _f, told, _a),) = opened(slots)
    assert told == name[1] == number
    assert slots[1:] == [
        (id, b"early", 0, 0), (id, b"", ERROR, errno.ECONNRESET), (id, b"", CLOSED, 0)
    ]  # fmt: skip
    peer = connect()
    sock, name = listener.accept()
    ((_id, _l, _f, number, _a),) = opened(hear(port, lambda slots: len(slots) == 1))
    assert number == name[1]
    for s in (dead, peer, sock, listener):
        s.close()


def remote_ports(here: int) -> list[int]:
    """Where the TCP connections to a port of this namespace come from, accepted or not.

    Those to other ports may have ended a minute ago, and wait in TIME_WAIT.
    """
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    ends = [[int(end.rpartition(":")[2], 16) for end in line[1:3]] for line in lines]
    return [remote for local, remote in ends if local == here]


@pytest.fixture
def fast_open() -> Iterator[None]:
    """Data comes with the first packet, without a cookie; answers to it come late."""
    before = FAST_OPEN.read_text()
    FAST_OPEN.write_text(str(0x202))
    with peer_namespace():
        FAST_OPEN.write_text(str(0x5))
    with peer_is_late_by(300):
        yield
    FAST_OPEN.write_text(before)


@pytest.mark.usefixtures("fast_open")
def test_a_connection_whose_handshake_is_not_over() -> None:
    """TCP Fast Open (RFC 7413): accept() returns it with its first bytes, and it can answer."""
    assert any(answered_in_the_handshake() for _ in range(10)), "it was over already, every time"


def answered_in_the_handshake() -> bool:
    """Accept a connection and answer; False where the handshake was over before we looked."""
    with (
        RawPort() as port,
        socket.create_server((ADDRESS, 0)) as listener,
        in_peer_namespace() as peer,
    ):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        port.attach_to(0, listener, ATTACH_LISTENER)
        peer.settimeout(60.0)
        peer.sendto(b"with the first packet", socket.MSG_FASTOPEN, listener.getsockname())
        sock, _name = listener.accept()
        with sock:
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            if state != TCP_SYN_RECV:
                return False
            slots = hear(port, lambda slots: any(data and not e for _i, data, e, _x in slots))
            assert [data for _i, data, event, _x in slots if not event] == [
                b"with the first packet"
            ]
            port.send(slots[0][0], b"an answer")
            assert peer.recv(100) == b"an answer"
            return True


@pytest.mark.usefixtures("fast_open")
def test_first_bytes_that_wait_for_a_credit_hold_up_nobody() -> None:
    """They came with the SYN, of which TCP says nothing before the handshake is over."""
    assert any(another_was_served() for _ in range(10)), "the handshake was over, every time"


def another_was_served() -> bool:
    """Hear of the end of another connection; False where the handshake was over by then."""
    other_peer, other = connect_pair()
    with (
        RawPort() as port,
        socket.create_server((ADDRESS, 0)) as listener,
        in_peer_namespace() as peer,
        other_peer,
        other,
    ):
        other_id = port.attach(other)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        peer.settimeout(60.0)
        peer.sendto(b"with the first packet", socket.MSG_FASTOPEN, listener.getsockname())
        time.sleep(0.1)  # so it comes when the other has been accepted
        other_peer.shutdown(socket.SHUT_WR)
        sock, _name = listener.accept()
        with sock:
            id = port.attach(sock)
            port.credit(id, 0)
            hear(port, lambda slots: any((i, e) == (other_id, EOF) for i, _d, e, _x in slots))
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            port.credit(id, 1)
            slots = hear(port, lambda slots: any(i == id and not e for i, _d, e, _x in slots))
            assert [d for i, d, e, _x in slots if i == id and not e] == [b"with the first packet"]
            return state == TCP_SYN_RECV


def test_a_detached_listener_accepts_ordinary_sockets(port: RawPort) -> None:
    """It may even become something that an attached socket may not."""
    sh("modprobe -q tls")
    with socket.create_server((ADDRESS, 0)) as listener:
        port.detach(port.attach_to(0, listener, ATTACH_LISTENER).id)
        with in_peer_namespace() as peer:
            peer.connect(listener.getsockname())
            sock, _name = listener.accept()
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
                assert sock.getsockopt(socket.IPPROTO_TCP, TCP_ULP, 16).rstrip(b"\0") == b"tls"


def test_an_accept_that_sleeps_already_returns_an_ordinary_socket(port: RawPort) -> None:
    with socket.create_server((ADDRESS, 0)) as listener:
        accepted: list[socket.socket] = []
        accepting = WaitingCall(lambda: accepted.append(listener.accept()[0]))
        accepting.await_sleep()
        port.attach_to(0, listener, ATTACH_LISTENER)
        with in_peer_namespace() as one, in_peer_namespace() as two:
            one.connect(listener.getsockname())
            assert accepting.result() == 0
            one.sendall(b"to the socket")
            with accepted[0] as sock:
                assert sock.recv(100) == b"to the socket"
            two.connect(listener.getsockname())
            with listener.accept()[0] as sock:
                assert code(sock.recv, 100) == errno.EBUSY


def test_an_accept_can_be_killed_while_the_port_is_in_a_call_that_does_not_end(
    port: RawPort,
) -> None:
    """Such as one that copies to memory which does not come; the listener is shared."""
    libc = ctypes.CDLL(None, use_errno=True)

    def stats(page: mmap.mmap | bytearray) -> None:
        into = ctypes.byref(ctypes.c_char.from_buffer(page))
        if libc.ioctl(port.port_fd, ctypes.c_ulong(SMIOC_STATS), into):
            raise OSError(ctypes.get_errno(), "ioctl")

    with socket.create_server((ADDRESS, 0)) as listener, in_peer_namespace() as peer:
        port.attach_to(0, listener, ATTACH_LISTENER)
        peer.connect(listener.getsockname())
        with under_way(stats), Child(lambda _tell: listener.accept()[0].close()) as child:
            child.await_sleep("DZ")
            os.kill(child.pid, signal.SIGKILL)
            # Where nothing can hold the call up (user-mode Linux) it accepts.
            assert child.await_end() in {-signal.SIGKILL, 0}
        assert port.stats()["connections"] == 0


def test_connections_that_wait_for_room_open_in_order() -> None:
    """A connection that found the ring full is not overtaken by one that was accepted later."""
    with RawPort(4, 4) as port, socket.create_server((ADDRESS, 0)) as listener:
        port.attach_to(0, listener, ATTACH_LISTENER)
        accepted = []
        names = []
        slots: list[Received] = []
        for _ in range(4):
            for _ in range(3):
                peer = in_peer_namespace()
                peer.connect(listener.getsockname())
                sock, name = listener.accept()
                accepted += [peer, sock]
                names.append(name[1])
            port.sync(SYNC_RX)  # now some wait for room
            deadline = time.monotonic() + 60
            while port.rx.tail == port.rx.head:
                assert time.monotonic() < deadline
                port.sync(SYNC_RX)
            slots += port.receive(0)
        slots += hear(port, lambda more: len(opened(slots + more)) == len(names))
        assert [number for _id, _of, _family, number, _address in opened(slots)] == names
        for sock in accepted:
            sock.close()
