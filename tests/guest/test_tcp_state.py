"""The record of TCP's state: read-only, and exactly what TCP_INFO and ss say."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import socket
import struct
import subprocess
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest

from stackmap import Event, RingConnection, RingPort, TcpState
from tests.guest.raw import STATE_OFFSET, STATE_SIZE, RawPort
from tests.guest.tcp_info import tcp_info
from tests.guest.wire import ADDRESS, NIC, connect_pair, connect_pair_from_here, peer_loses
from tests.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60.0
#: Seconds; a record may be one jiffy late, which is 10 milliseconds at the most.
LATE = 0.03


def at_rest(connection: RingConnection) -> tuple[TcpState, dict[str, int]]:
    """A record, and TCP_INFO of a time at which it did not change."""
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline
        info = tcp_info(connection.sock)
        time.sleep(LATE)
        record = connection.tcp_state()
        if tcp_info(connection.sock) == info:
            return record, info


def check_exact(connection: RingConnection, *, but: str = "") -> TcpState:
    record, info = at_rest(connection)
    info.pop(but, None)
    assert {name: getattr(record, name) for name in info} == info
    return record


def ss(sock: socket.socket) -> dict[str, str]:
    """A connection's line of ``ss -i``."""
    port, peer = sock.getsockname()[1], sock.getpeername()[1]
    command = ["ss", "-tinHO", "sport", "=", f":{port}", "and", "dport", "=", f":{peer}"]
    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(re.findall(r"(\w+):(\S+)", line))


class Exchanged(NamedTuple):
    port: RingPort
    peer: socket.socket
    connection: RingConnection

    def talk(self, rounds: int, size: int = 2000) -> None:
        """Send and receive, so that there is a state worth looking at; then no ACK is under way."""
        for _ in range(rounds):
            self.peer.sendall(b"q" * 100)
            got = 0
            while got < 100:
                got += sum(len(segment.view) for segment in self.port.exchange(1.0))
            self.connection.write(b"a" * size)
            self.port.exchange()
            receive_exactly(self.peer, size)
        deadline = time.monotonic() + PATIENCE
        while (record := self.connection.tcp_state()).bufs_pinned or record.unacked:
            assert time.monotonic() < deadline, record
            self.port.exchange(0.01)


@pytest.mark.parametrize(
    ("connect", "family"),
    [(connect_pair, socket.AF_INET), (connect_pair_from_here, socket.AF_INET6)],
)
def test_the_record_is_tcp_info(
    connect: Callable[[int], tuple[socket.socket, socket.socket]], family: int
) -> None:
    with RingPort(NIC) as port:
        peer, sock = connect(family)
        link = Exchanged(port, peer, port.attach(sock))
        check_exact(link.connection)
        link.talk(50)
        record = check_exact(link.connection)
        assert record.state == 1
        assert record.ring == 0
        assert (record.bytes_received, record.bytes_accepted) == (5000, 100_000)
        # A slow machine may be late with an ACK, and get things twice.
        assert record.bytes_sent - record.bytes_retrans == 100_000
        assert (record.bytes_pinned, record.bufs_pinned, record.unacked) == (0, 0, 0)
        assert record.srtt_us > 0
        peer.shutdown(socket.SHUT_WR)
        while not any(segment.event & Event.EOF for segment in port.exchange(1.0)):
            pass
        assert check_exact(link.connection).state == 8  # CLOSE_WAIT
        peer.close()


def test_the_record_is_what_ss_says() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        link = Exchanged(port, peer, port.attach(sock))
        link.talk(30)
        record = check_exact(link.connection)
        said = ss(sock)
        assert link.connection.tcp_state() == record
        for name in ("mss", "bytes_sent", "bytes_acked", "bytes_received"):
            assert said[name] == str(getattr(record, name)), name
        assert said["cwnd"] == str(record.snd_cwnd)
        rtt, rttvar = said["rtt"].split("/")
        assert (float(rtt), float(rttvar)) == (record.srtt_us / 1000, record.rttvar_us / 1000)
        assert float(said["rto"]) == record.rto_us / 1000
        peer.close()


def test_unacknowledged_and_retransmitted_bytes() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        link = Exchanged(port, peer, port.attach(sock))
        link.talk(10)
        with peer_loses(100):
            for _ in range(3):
                link.connection.write(b"unheard of" * 500)
                port.exchange()
            record = link.connection.tcp_state()
            assert (record.bytes_pinned, record.bytes_acked) == (15_000, 20_000)
            assert record.bufs_pinned == port.stats().bufs_pinned == 6
            assert record.unacked > 0
            deadline = time.monotonic() + PATIENCE
            while record.total_retrans < 2:
                assert time.monotonic() < deadline
                port.exchange(0.05)
                # The timer doubles it after the packet that it sent, with which the record ends.
                record = check_exact(link.connection, but="rto_us")
            assert record.bytes_retrans > 0
            assert record.ca_state == 4  # loss
            assert record.bytes_pinned == 15_000
            while True:
                before, said = record, ss(sock)
                time.sleep(LATE)
                record = link.connection.tcp_state()
                if record == before:
                    break
            assert said["bytes_retrans"] == str(record.bytes_retrans)
        while link.connection.tcp_state().bytes_acked < 35_000:
            assert time.monotonic() < deadline
            port.exchange(0.05)
        record = check_exact(link.connection)
        assert (record.bytes_pinned, record.bufs_pinned, record.bytes_notsent) == (0, 0, 0)
        assert record.bytes_sent == 35_000 + record.bytes_retrans
        assert ss(sock)["retrans"] == f"0/{record.total_retrans}"
        link.talk(5)
        check_exact(link.connection)
        peer.close()


def test_a_peer_that_does_not_read() -> None:
    """Accepted, sent and unsent bytes add up, all the way."""
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        connection = port.attach(sock)
        while connection.pending < 1 << 20:
            connection.write(b"w" * 65536)
            port.exchange(0.01)
        record = check_exact(connection)
        assert record.bytes_notsent > 0
        assert record.bytes_accepted == port.stats().tx_bytes
        in_tcp = record.bytes_sent - record.bytes_retrans + record.bytes_notsent
        assert 0 <= record.bytes_accepted - in_tcp < 4096  # the rest of a slot is in the module
        # buffers that were given to TCP together are released together
        together = 64 * 4096
        assert 0 < record.bytes_pinned <= record.bytes_accepted - record.bytes_acked + together
        peer.close()


def test_a_record_ends_with_its_connection() -> None:
    with RingPort(NIC, connections=2) as port, socket.create_server((ADDRESS, 0)) as sock:
        old: list[RingConnection] = []
        for number in range(20):
            peer, accepted = connect_pair()
            connection = attach_when_there_is_room(port, accepted)
            assert connection.tcp_state().bytes_received == 0
            peer.sendall(b"x" * (number + 1))
            while connection.tcp_state().bytes_received <= number:
                port.exchange(0.1)
            connection.close()
            while not any(segment.event & Event.CLOSED for segment in port.exchange(0.1)):
                pass
            peer.close()
            old.append(connection)
        for connection in old[:-2]:
            with pytest.raises(OSError) as caught:
                connection.tcp_state()
            assert caught.value.errno == errno.ENOENT
        # what was accepted has a record once the ring has named it
        listener = port.attach_listener(sock.dup())
        peer, extra = connect_pair()
        extra.close()
        peer.close()
        assert listener.fileno() >= 0


def attach_when_there_is_room(port: RingPort, sock: socket.socket) -> RingConnection:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return port.attach(sock)
        except OSError as error:
            if error.errno != errno.ENOSPC or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# -- the mapping --


def map_states(port: RawPort, size: int, **arguments: int) -> mmap.mmap:
    return mmap.mmap(port.fd, size, offset=STATE_OFFSET, **arguments)


def test_the_mapping_is_read_only() -> None:
    with RawPort(16, 16, connections=100) as port:
        size = -(-100 * STATE_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE
        for protection in (mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
            with pytest.raises(PermissionError):
                map_states(port, size, prot=protection)
        with pytest.raises(OSError, match="Invalid argument"):
            map_states(port, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        with pytest.raises(OSError, match="Invalid argument"):
            map_states(port, size + mmap.PAGESIZE, prot=mmap.PROT_READ)
        with map_states(port, size, prot=mmap.PROT_READ) as states:
            assert states[:] == bytes(size)
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 4, ctypes.c_size_t]
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, port.fd, STATE_OFFSET)
            for protection in (mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
                assert libc.mprotect(ctypes.c_void_p(address), size, protection) == -1
                assert ctypes.get_errno() == errno.EACCES
            libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        # nor by a descriptor of another pair, nor beside the rings
        with pytest.raises(OSError, match=r"."):
            mmap.mmap(port.fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=STATE_OFFSET - (1 << 30))


def test_the_record_by_its_number() -> None:
    """The library reads the record that SMIOC_ATTACH names."""
    with RawPort(16, 16, connections=64) as port:
        peers, socks = zip(*[connect_pair() for _ in range(5)], strict=True)
        attached = [port.attach_to(0, sock) for sock in socks]
        assert len({a.record for a in attached}) == 5
        with map_states(port, 64 * STATE_SIZE, prot=mmap.PROT_READ) as states:
            for number, peer in enumerate(peers):
                peer.sendall(b"x" * (number + 1))
            deadline = time.monotonic() + PATIENCE
            while port.stats()["rx_bytes"] < 15:
                assert time.monotonic() < deadline
                port.receive()
            for number, a in enumerate(attached):
                at = a.record * STATE_SIZE
                seq, id, state = struct.unpack_from("<IIB", states, at)
                received = struct.unpack_from("<Q", states, at + 48)[0]
                assert (seq % 2, id, state, received) == (0, a.id, 1, number + 1)
            socks[0].close()
            while struct.unpack_from("<I", states, attached[0].record * STATE_SIZE + 4)[0]:
                assert time.monotonic() < deadline
                port.receive()
        for sock in (*peers, *socks):
            sock.close()


def test_a_forked_child_has_no_mapping() -> None:
    with RingPort(NIC) as port:
        peer, sock = connect_pair()
        with closing(peer):
            connection = port.attach(sock)
            assert connection.tcp_state().state == 1
            pid = os.fork()
            if not pid:
                import faulthandler

                faulthandler.disable()
                connection.tcp_state()
                os._exit(0)
            _pid, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status)
