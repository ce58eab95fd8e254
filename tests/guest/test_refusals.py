"""Sockets that cannot be attached, calls that attached ones refuse; a refusal changes nothing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.guest import uring
from tests.guest.bpf import (
    load_socket_filter,
    make_sockmap,
    put_into_sockmap,
    remove_from_sockmap,
)
from tests.guest.commands import sh
from tests.guest.locked_socket import WaitingCall
from tests.guest.raw import CLOSED, ERROR, RawPort
from tests.guest.wire import ADDRESS, ADDRESS6, NIC, connect_pair, in_peer_namespace
from tests.receiving import receive_exactly
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.attached import Attached

TCP_REPAIR, TCP_ULP, TCP_ZEROCOPY_RECEIVE = 19, 31, 35
IPPROTO_MPTCP = 262
IPV6_ADDRFORM = 1
AF_KCM = 41
SIOCKCMATTACH, SIOCKCMUNATTACH = 0x89E0, 0x89E1


def code(call: Callable[..., object], *arguments: object) -> int:
    """The errno with which a call fails."""
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno or 0


def check_ordinary(peer: socket.socket, sock: socket.socket) -> None:
    """The connection carries bytes both ways, through the socket."""
    sock.sendall(b"there")
    assert receive_exactly(peer, 5) == b"there"
    peer.sendall(b"back")
    assert receive_exactly(sock, 4) == b"back"


def check_attachable(port: RawPort, peer: socket.socket, sock: socket.socket) -> None:
    """The connection can be attached now, and sends."""
    id = port.attach(sock)
    port.send(id, b"by ring")
    assert receive_exactly(peer, 7) == b"by ring"
    port.detach(id)


# -- sockets that cannot be attached --


def test_no_socket(port: RawPort) -> None:
    assert code(port.attach, 9999) == errno.EBADF
    assert code(port.attach, -1) == errno.EBADF
    with open(__file__, "rb") as regular:
        assert code(port.attach, regular.fileno()) == errno.ENOTSOCK
    read_end, write_end = os.pipe()
    assert code(port.attach, read_end) == errno.ENOTSOCK
    os.close(read_end)
    os.close(write_end)
    assert code(port.attach, port.fd) == errno.ENOTSOCK


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_not_tcp(port: RawPort, family: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        assert code(port.attach, udp) == errno.EOPNOTSUPP
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        assert code(port.attach, raw) == errno.EOPNOTSUPP
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        here, there = socket.socketpair(socket.AF_UNIX, kind)
        with here, there:
            assert code(port.attach, here) == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, ADDRESS), (socket.AF_INET6, ADDRESS6)]
)
def test_not_established(port: RawPort, family: int, address: str) -> None:
    with socket.create_server((address, 0), family=family) as listener:
        assert code(port.attach, listener) == errno.EINVAL
        with socket.socket(family) as fresh:
            assert code(port.attach, fresh) == errno.ENOTCONN
            fresh.bind((address, 0))
            assert code(port.attach, fresh) == errno.ENOTCONN
        # the refused listener listens still
        peer = in_peer_namespace(family)
        with peer:
            peer.connect(listener.getsockname())
            accepted, _address = listener.accept()
            with accepted:
                check_ordinary(peer, accepted)


def test_a_connection_that_is_being_made(port: RawPort) -> None:
    sh(f"ip neigh replace 10.78.0.99 lladdr 02:78:00:00:00:99 dev {NIC} nud permanent")
    with socket.socket() as opening:
        opening.setblocking(False)
        assert opening.connect_ex(("10.78.0.99", 7)) == errno.EINPROGRESS
        assert code(port.attach, opening) == errno.ENOTCONN
    sh(f"ip neigh del 10.78.0.99 dev {NIC}")


def test_a_connection_that_has_ended(port: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(sock):
        reset_on_close(peer)
        peer.close()
        time.sleep(0.1)
        id = port.attach(sock)
        assert port.receive() == [(id, b"", ERROR, errno.ECONNRESET), (id, b"", CLOSED, 0)]
        # SO_ERROR was not read, so the socket can be attached again, and reports it again.
        id = port.attach(sock)
        assert port.receive() == [(id, b"", ERROR, errno.ECONNRESET), (id, b"", CLOSED, 0)]
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        reset_on_close(peer)
        peer.close()
        time.sleep(0.1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        assert code(port.attach, sock) == errno.ENOTCONN


def test_a_half_closed_connection(port: RawPort) -> None:
    """After the peer's FIN it may be attached (TCP can still send); after its own it may not."""
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        assert code(port.attach, sock) == errno.ENOTCONN
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        peer.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        check_attachable(port, peer, sock)


def test_unknown_flags(port: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        for flags in (2, 4, 1 << 31):
            assert code(lambda flags=flags: port.attach(sock, flags=flags)) == errno.EINVAL
        assert code(lambda: port.attach(sock, reserved=1)) == errno.EINVAL
        check_ordinary(peer, sock)


def test_of_another_network_namespace(port: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        assert code(port.attach, peer) == errno.EXDEV
        check_ordinary(peer, sock)


def test_attached_already(port: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        id = port.attach(sock)
        assert code(port.attach, sock) == errno.EALREADY
        with sock.dup() as duplicate:
            assert code(port.attach, duplicate) == errno.EALREADY
        with RawPort() as other:
            assert code(other.attach, sock) == errno.EALREADY
        port.send(id, b"still attached")
        assert peer.recv(100) == b"still attached"
    assert port.stats()["connections"] == 0


def test_in_repair_mode(port: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        assert code(port.attach, sock) == errno.EBUSY
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        check_ordinary(peer, sock)
        check_attachable(port, peer, sock)


def test_while_a_call_waits_to_send(port: RawPort) -> None:
    """Its bytes would come between those of slots."""
    peer, sock = connect_pair()
    with peer, sock:
        total = 8 << 20
        sending = WaitingCall(lambda: sock.sendall(bytes(total)))
        sending.await_sleep()
        assert code(port.attach, sock) == errno.EBUSY
        left = total
        while left:
            left -= len(peer.recv(1 << 20))
        assert sending.result() == 0
        check_attachable(port, peer, sock)


def test_with_ktls(port: RawPort) -> None:
    sh("modprobe tls")
    for family in (socket.AF_INET, socket.AF_INET6):
        peer, sock = connect_pair(family)
        with closing(peer), closing(sock):
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            assert code(port.attach, sock) == errno.EBUSY
            check_ordinary(peer, sock)


def test_in_a_sockmap(port: RawPort) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        peer, sock = connect_pair(family)
        sockmap = make_sockmap()
        with closing(peer), closing(sock):
            put_into_sockmap(sockmap, 0, sock)
            assert code(port.attach, sock) == errno.EBUSY
            check_ordinary(peer, sock)
            remove_from_sockmap(sockmap, 0)
            check_attachable(port, peer, sock)
        os.close(sockmap)


@contextmanager
def kcm() -> Iterator[tuple[socket.socket, int]]:
    """A KCM socket, and the descriptor of a program for what it takes over."""
    sh("modprobe kcm")
    program = load_socket_filter()
    with socket.socket(AF_KCM, socket.SOCK_DGRAM) as multiplexor:
        yield multiplexor, program
    os.close(program)


def test_taken_by_kcm(port: RawPort) -> None:
    peer, sock = connect_pair()
    with closing(peer), closing(sock), kcm() as (multiplexor, program):
        fcntl.ioctl(multiplexor, SIOCKCMATTACH, struct.pack("<ii", sock.fileno(), program))
        assert code(port.attach, sock) == errno.EBUSY
        fcntl.ioctl(multiplexor, SIOCKCMUNATTACH, struct.pack("<i", sock.fileno()))
        check_ordinary(peer, sock)
        check_attachable(port, peer, sock)


def test_mptcp(port: RawPort) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
        listener.bind((ADDRESS, 0))
        assert code(port.attach, listener) == errno.EOPNOTSUPP
        listener.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as opened:
            opened.connect(listener.getsockname())
            accepted, _address = listener.accept()
            with accepted:
                assert code(port.attach, opened) == errno.EOPNOTSUPP
                assert code(port.attach, accepted) == errno.EOPNOTSUPP
                check_ordinary(opened, accepted)
        # A client without MPTCP makes accept() return a plain TCP socket.
        peer = in_peer_namespace()
        with peer:
            peer.connect(listener.getsockname())
            plain, _address = listener.accept()
            with plain:
                check_attachable(port, peer, plain)


# -- calls that an attached socket refuses --


def test_payload_by_the_socket(two: Attached) -> None:
    sock = two.sock
    sock.setblocking(False)
    two.peer.sendall(b"for the ring")
    time.sleep(0.1)
    assert code(sock.recv, 10) == errno.EBUSY
    assert code(sock.recv, 10, socket.MSG_PEEK) == errno.EBUSY
    assert code(sock.recvmsg, 10) == errno.EBUSY
    assert code(sock.recvmsg, 10, 100, socket.MSG_ERRQUEUE) == errno.EAGAIN  # nothing is there
    assert code(os.read, sock.fileno(), 10) == errno.EBUSY
    assert code(sock.send, b"x") == errno.EBUSY
    assert code(sock.send, b"x", socket.MSG_OOB) == errno.EBUSY
    assert code(sock.sendmsg, [b"x", b"y"]) == errno.EBUSY
    assert code(os.write, sock.fileno(), b"x") == errno.EBUSY
    read_end, write_end = os.pipe()
    os.write(write_end, b"x")
    assert code(os.splice, sock.fileno(), write_end, 10) == errno.EBUSY
    assert code(os.splice, read_end, sock.fileno(), 1) == errno.EBUSY
    with open(__file__, "rb") as file:
        assert code(os.sendfile, sock.fileno(), file.fileno(), 0, 10) == errno.EBUSY
    os.close(read_end)
    os.close(write_end)
    payload = b"".join(p for i, p, _e, _x in two.port.receive() if i == two.id)
    assert payload == b"for the ring"


def test_payload_by_io_uring(two: Attached) -> None:
    two.peer.sendall(b"for the ring")
    time.sleep(0.1)
    with uring.Uring() as ring:
        for operation in (uring.SEND, uring.SEND_ZC, uring.RECV, uring.READ, uring.WRITE):
            assert ring.run(operation, two.sock, 10) == -errno.EBUSY, operation
        # and the same requests work on an ordinary socket
        peer, sock = connect_pair()
        with closing(peer), closing(sock):
            assert ring.run(uring.SEND, sock, 10) == 10
            assert peer.recv(100) == bytes(10)
            peer.sendall(b"answer")
            assert ring.run(uring.RECV, sock, 10) == 6
    payload = b"".join(p for i, p, _e, _x in two.port.receive() if i == two.id)
    assert payload == b"for the ring"


def test_becoming_something_else(two: Attached) -> None:
    assert code(two.sock.connect, (ADDRESS, 1)) == errno.EBUSY
    # connect() to the family AF_UNSPEC is how a TCP socket is disconnected
    nowhere = struct.pack("<H14x", socket.AF_UNSPEC)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(two.sock.fileno(), nowhere, len(nowhere)) == -1
    assert ctypes.get_errno() == errno.EBUSY
    assert code(two.sock.listen) == errno.EBUSY


def test_options_that_take_the_receive_path_are_refused(two: Attached) -> None:
    sh("modprobe tls")
    tcp = socket.IPPROTO_TCP
    for name in (b"tls", b"smc", b"nonsense"):
        assert code(two.sock.setsockopt, tcp, TCP_ULP, name) == errno.EBUSY
    for value in (1, 0):
        assert code(two.sock.setsockopt, tcp, TCP_REPAIR, value) == errno.EBUSY
    two.peer.sendall(b"for the ring")
    time.sleep(0.1)
    assert code(two.sock.getsockopt, tcp, TCP_ZEROCOPY_RECEIVE, 64) == errno.EBUSY
    payload = b"".join(p for i, p, _e, _x in two.port.receive() if i == two.id)
    assert payload == b"for the ring"
    # and detached, it may be repaired again
    two.port.detach(two.id)
    two.sock.setsockopt(tcp, TCP_REPAIR, 1)
    two.sock.setsockopt(tcp, TCP_REPAIR, 0)
    check_ordinary(two.peer, two.sock)


def test_a_mapping_of_an_attached_socket_shows_nothing(two: Attached) -> None:
    """A send copies with the socket locked, and may fault: so mmap() must not lock it (lockdep)."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    two.peer.sendall(memory)
    with mmap.mmap(two.sock.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ):
        refused = code(two.sock.getsockopt, socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, 64)
    assert refused == errno.EBUSY
    two.port.detach(two.id)
    two.sock.sendall(memory)


def test_an_attached_socket_of_ipv6_stays_one(port: RawPort) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        peer = in_peer_namespace()
        peer.connect((ADDRESS, listener.getsockname()[1]))
        sock, _address = listener.accept()
    with closing(peer), closing(sock):
        id = port.attach(sock)
        assert code(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_ADDRFORM, socket.AF_INET) == (
            errno.EBUSY
        )
        port.send(id, b"by ring")
        assert peer.recv(7) == b"by ring"


def test_becoming_somebody_elses(two: Attached) -> None:
    sockmap = make_sockmap()
    assert code(put_into_sockmap, sockmap, 0, two.sock) == errno.EINVAL
    with kcm() as (multiplexor, program):
        request = struct.pack("<ii", two.sock.fileno(), program)
        assert code(fcntl.ioctl, multiplexor, SIOCKCMATTACH, request) == errno.EALREADY
    two.port.send(two.id, b"still attached")
    assert two.peer.recv(100) == b"still attached"
    # a socket that was attached stays out of these hands
    two.port.detach(two.id)
    assert code(put_into_sockmap, sockmap, 0, two.sock) == errno.EINVAL
    assert code(two.sock.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"tls") == errno.EBUSY
    check_ordinary(two.peer, two.sock)
    os.close(sockmap)


def test_control_goes_on(two: Attached) -> None:
    sock = two.sock
    assert sock.getpeername() == two.peer.getsockname()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 100)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    two.port.send(two.id, b"last")
    sock.shutdown(socket.SHUT_WR)
    assert receive_exactly(two.peer, 4) == b"last"
    assert two.peer.recv(1) == b""
