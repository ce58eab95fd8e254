"""Every limit of a port: what is refused, by which limit, and to which account it is charged."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stackmap import BackendUnavailableError, RingPort
from tests.guest.children import Child
from tests.guest.memory import memory_cgroup
from tests.guest.raw import (
    ATTACH_LISTENER,
    CLOSED,
    STATE_SIZE,
    RawPort,
    address_of,
    limits_option,
    register,
    register_body,
)
from tests.guest.wire import ADDRESS, NIC, connect_pair, in_peer_namespace, peer_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How many connections are attached to see what they cost, and what each costs at least: its
#: addresses, links and callbacks alone.
ATTACHED, CONNECTION_SIZE = 1000, 200

NONE, RINGS, SLOTS, BUFFERS, CONNECTIONS, MEMORY = range(6)
MILLION = 1 << 20


def refusal(body: bytearray, option: bytearray) -> tuple[int, int]:
    """The errno with which registering fails, and the limit that the option names."""
    fd = os.open("/dev/stackmap", os.O_RDWR)
    with pytest.raises(OSError) as caught:
        register(fd, f"tcp:{NIC}", body, options=address_of(option))
    os.close(fd)
    status, limit = struct.unpack_from("<12xI16xI", option)
    assert status == caught.value.errno
    return caught.value.errno or 0, limit


@pytest.mark.parametrize(
    ("body", "option", "code", "limit"),
    [
        (register_body(tx_rings=65, rx_rings=65), limits_option(), errno.EINVAL, RINGS),
        (register_body(tx_rings=65535, rx_rings=65535), limits_option(), errno.EINVAL, RINGS),
        (register_body(tx_rings=2, rx_rings=1), limits_option(), errno.EINVAL, RINGS),
        (register_body(tx_rings=1), limits_option(), errno.EINVAL, RINGS),
        (register_body(tx_slots=3), limits_option(), errno.EINVAL, SLOTS),
        (register_body(tx_slots=16385), limits_option(), errno.EINVAL, SLOTS),
        (register_body(rx_slots=2**32 - 1), limits_option(), errno.EINVAL, SLOTS),
        (register_body(16384, 16384, 64, 64), limits_option(), errno.ENOSPC, BUFFERS),
        (register_body(extra=MILLION), limits_option(), errno.ENOSPC, BUFFERS),
        (register_body(extra=2**32 - 1), limits_option(), errno.ENOSPC, BUFFERS),
        (register_body(), limits_option(spare=MILLION), errno.ENOSPC, BUFFERS),
        (register_body(), limits_option(spare=2**32 - 1), errno.ENOSPC, BUFFERS),
        (register_body(), limits_option(connections=MILLION + 1), errno.ENOSPC, CONNECTIONS),
        (register_body(), limits_option(connections=2**32 - 1), errno.ENOSPC, CONNECTIONS),
        # more than the guest has
        (register_body(), limits_option(spare=MILLION - 4096), errno.ENOMEM, MEMORY),
        # no limit, but wrong all the same
        (register_body(), limits_option(reserved=1), errno.EINVAL, NONE),
    ],
)
def test_sizes_above_a_limit_are_refused_with_the_limit(
    body: bytearray, option: bytearray, code: int, limit: int
) -> None:
    if option[-4:] != bytes(4):
        fd = os.open("/dev/stackmap", os.O_RDWR)
        with pytest.raises(OSError) as caught:
            register(fd, f"tcp:{NIC}", body, options=address_of(option))
        os.close(fd)
        assert caught.value.errno == code
    else:
        assert refusal(body, option) == (code, limit)
    with RawPort() as port:  # and the next one is none the worse
        assert port.tx.n == 1024


def pages_allocated() -> int:
    """How many pages the kernel has handed out since it booted."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("pgalloc_"))


def test_sizes_beyond_the_machine_are_refused_at_once() -> None:
    """A port that does not fit fails early, and reclaims no memory of other processes."""
    body, option = register_body(), limits_option(spare=MILLION - 4096)
    before = pages_allocated()
    assert refusal(body, option) == (errno.ENOMEM, MEMORY)
    assert pages_allocated() - before < 50_000


def test_options_that_are_unknown_or_repeated() -> None:
    fd = os.open("/dev/stackmap", os.O_RDWR)
    second = limits_option()
    first = limits_option(following=address_of(second))
    unknown = bytearray(struct.pack("<QIIQ", 0, 77, 0, 24))
    for option, told in ((first, second), (unknown, unknown)):
        with pytest.raises(OSError) as caught:
            register(fd, f"tcp:{NIC}", register_body(), options=address_of(option))
        assert caught.value.errno == errno.EOPNOTSUPP
        assert struct.unpack_from("<12xI", told)[0] == errno.EOPNOTSUPP
    with pytest.raises(OSError) as caught:
        register(fd, f"tcp:{NIC}", register_body(), options=8)
    assert caught.value.errno == errno.EFAULT
    register(fd, f"tcp:{NIC}", register_body())
    os.close(fd)


def test_granted_sizes() -> None:
    with RawPort(spare=0, connections=0) as port:
        assert (port.rings, port.tx_slots, port.rx_slots) == (1, 1024, 1024)
        assert (port.spare, port.connections) == (4096, 16384)
        assert port.stats()["bufs_free"] == 4096
    with RawPort(16, 32, rings=3, extra=5, spare=7, connections=11) as port:
        assert (port.rings, port.tx_slots, port.rx_slots) == (3, 16, 32)
        assert (port.spare, port.connections) == (7, 11)
        assert port.stats()["bufs_free"] == 7
        assert len(port.extra_buffers()) == 5


def test_more_connections_than_registered_for() -> None:
    with RawPort(16, 16, connections=3) as port:
        pairs = [connect_pair() for _ in range(4)]
        ids = [port.attach(sock) for _peer, sock in pairs[:3]]
        with pytest.raises(OSError) as caught:
            port.attach(pairs[3][1])
        assert caught.value.errno == errno.ENOSPC
        port.detach(ids[1])
        while (ids[1], b"", CLOSED, 0) not in port.receive():
            pass
        fourth = attach_once_there_is_room(port, pairs[3][1])
        port.send(fourth, b"in")
        assert pairs[3][0].recv(2) == b"in"
        for peer, sock in pairs:
            peer.close()
            sock.close()


def attach_once_there_is_room(port: RawPort, sock: socket.socket) -> int:
    """A record is free when the last reader of the old connection has gone."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return port.attach(sock)
        except OSError as error:
            if error.errno != errno.ENOSPC or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_a_listener_keeps_what_it_has_no_room_for() -> None:
    with RawPort(16, 16, connections=1) as port, socket.create_server((ADDRESS, 0)) as listener:
        port.attach_to(0, listener, ATTACH_LISTENER)
        peers = [in_peer_namespace() for _ in range(2)]
        for number, peer in enumerate(peers):
            peer.connect(listener.getsockname())
            peer.sendall(b"peer %d" % number)
        first, _address = listener.accept()
        with pytest.raises(OSError) as caught:
            listener.accept()
        assert caught.value.errno == errno.ENOSPC
        first.close()
        deadline = time.monotonic() + 20
        second = accept_once_there_is_room(port, listener)
        assert second.getpeername() == peers[1].getsockname()
        payload = b""
        while payload != b"peer 1":
            assert time.monotonic() < deadline
            payload += b"".join(data for _id, data, event, _err in port.receive() if not event)
        for sock in (second, *peers):
            sock.close()


def accept_once_there_is_room(port: RawPort, listener: socket.socket) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        port.receive()
        try:
            return listener.accept()[0]
        except OSError as error:
            if error.errno != errno.ENOSPC or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"rings": 65}, "1 to 64 pairs of rings, not 65"),
        ({"tx_slots": 2}, "4 to 16384 slots, not 2 and 1024"),
        ({"extra_buffers": MILLION}, "at most 1048576 buffers, not 1054720"),
        ({"connections": MILLION + 1}, "at most 1048576 connections, not 1048577"),
        ({"spare_buffers": MILLION - 4096}, r"not enough memory for .* buffers \(4088 MiB\)"),
    ],
)
def test_the_library_says_which_limit(sizes: dict[str, int], sentence: str) -> None:
    with pytest.raises(BackendUnavailableError, match=sentence):
        RingPort(NIC, **sizes)


@pytest.mark.parametrize(
    "sizes",
    [
        {"rings": 0},
        {"rings": 1 << 16},
        {"tx_slots": -4},
        {"tx_slots": 0},
        {"rx_slots": 0},
        {"spare_buffers": 0},
        {"spare_buffers": 1 << 32},
        {"connections": 0},
        {"extra_buffers": -1},
    ],
)
def test_invalid_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(sizes))} must be a size"):
        RingPort(NIC, **sizes)


# -- accounting --


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup with 100 MB."""
    with memory_cgroup(100 << 20) as cgroup:
        yield cgroup


def in_cgroup(cgroup: Path, program: str) -> str:
    """Run Python in a cgroup; returns what it printed."""
    enter = f"open({str(cgroup / 'cgroup.procs')!r}, 'w').write('0')\n"
    command = [sys.executable, "-c", enter + program]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_a_port_beyond_its_cgroup_s_memory_is_refused(cgroup: Path) -> None:
    """The OOM killer does not run: the call fails, and the caller goes on with less."""
    printed = in_cgroup(
        cgroup,
        f"""
from stackmap import BackendUnavailableError, RingPort
try:
    RingPort({NIC!r}, spare_buffers=40_000)
except BackendUnavailableError as refusal:
    print(refusal)
RingPort({NIC!r}).close()
print("alive")
""",
    )
    assert "not enough memory for the port's 42048 buffers (164 MiB)" in printed
    assert f"memory.max of the cgroup {cgroup.name} is {100 << 20} bytes" in printed
    assert printed.endswith("alive\n")
    events = dict(line.split() for line in (cgroup / "memory.events").read_text().splitlines())
    assert (events["oom"], events["oom_kill"]) == ("0", "0")


def test_the_caller_is_charged(cgroup: Path) -> None:
    printed = in_cgroup(
        cgroup,
        f"""
import time
from pathlib import Path
from stackmap import RingPort
def charged():
    return int(Path({str(cgroup / "memory.current")!r}).read_text())
def references():
    return int(Path("/sys/module/stackmap/refcnt").read_text())
idle = references()
RingPort({NIC!r}).close()
while references() > idle:  # its memory is freed a little later
    time.sleep(0.01)
before = charged()
port = RingPort({NIC!r}, spare_buffers=10_000)
print(charged() - before)
port.close()
""",
    )
    region = (1024 + 1024 + 10_000) * 4096
    assert 0.99 * region < int(printed) < 1.2 * region


def charged(cgroup: Path) -> dict[str, int]:
    """Bytes that a memory cgroup is charged for: all, and by what the kernel uses them for."""
    lines = (cgroup / "memory.stat").read_text().splitlines()
    found = {name: int(value) for name, value in (line.split() for line in lines)}
    return found | {"all": int((cgroup / "memory.current").read_text())}


def test_records_rings_and_connections_are_charged(cgroup: Path) -> None:
    """The sockets were there before, and nobody of this cgroup made them."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * ATTACHED, 4 * ATTACHED))
    with ExitStack() as stack:
        socks = []
        listener = stack.enter_context(socket.create_server((ADDRESS, 0), backlog=128))
        with peer_namespace():
            peers = [stack.enter_context(socket.socket()) for _ in range(ATTACHED)]
        for peer in peers:
            peer.connect(listener.getsockname())
            socks.append(stack.enter_context(listener.accept()[0]))

        def work(tell: Callable[[], object]) -> None:
            (cgroup / "cgroup.procs").write_text("0")
            before = charged(cgroup)
            with RawPort(1024, 1024, rings=4, spare=16, connections=200_000) as port:
                opened = charged(cgroup)
                records = port.connections * STATE_SIZE
                rings = 4 * 2 * (256 + 1024 * 16)
                buffers = (4 * 2 * 1024 + 16) * 4096
                assert opened["vmalloc"] - before["vmalloc"] > 0.99 * (records + rings)
                assert opened["all"] - before["all"] > 0.99 * (records + rings + buffers)
                for sock in socks:
                    port.attach(sock)
                attached = charged(cgroup)
                used = attached["slab_unreclaimable"] - opened["slab_unreclaimable"]
                assert used > ATTACHED * CONNECTION_SIZE
                assert attached["all"] - opened["all"] > ATTACHED * CONNECTION_SIZE
            tell()

        with Child(work) as child:
            child.await_word()
            assert child.await_end() == 0


def test_memory_comes_back_when_the_port_closes(cgroup: Path) -> None:
    """A port's pages are freed with it, so that the same room can be had again and again."""
    in_cgroup(
        cgroup,
        f"""
from stackmap import RingPort
for _ in range(5):
    RingPort({NIC!r}, spare_buffers=10_000).close()
RingPort({NIC!r}, spare_buffers=10_000)  # closed by the end of the process
""",
    )
    deadline = time.monotonic() + 20
    while int((cgroup / "memory.current").read_text()) > 20 << 20:
        assert time.monotonic() < deadline
        time.sleep(0.1)
