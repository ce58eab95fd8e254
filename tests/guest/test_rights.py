"""Rights to bind a NIC and to open a port; an open port leaks nothing to others."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import os
import pickle
import pwd
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyroute2 import IPRoute, netns
from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg import plugins

from stackmap import BackendUnavailableError, RingPort
from stackmap.inspect import QDISC_KIND, Grants, Inspector, bound_nics
from stackmap_cli.qdisc import NicError, read_nic, set_qdisc
from tests.guest.commands import sh
from tests.guest.peer import inside
from tests.guest.raw import SYNC_POLL, SYNC_RX, RawPort
from tests.guest.tracing import traced
from tests.guest.wire import NIC, PEER_NAMESPACE, connect_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.guest.attached import Attached

USER, OTHER_USER, GROUP, OTHER_GROUP = 4001, 4002, 5001, 5002
PR_SET_DUMPABLE = 4
SMIOC_RING = 0x400869C5
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def in_child(work: Callable[[], Any]) -> Any:
    """Do something in a forked child; returns what it returned, or raises what it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            outcome: tuple[bool, Any] = (True, work())
        except Exception as error:  # noqa: BLE001 (it goes to the parent)
            outcome = (False, error)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _pid, status = os.waitpid(pid, 0)
    assert status == 0, status
    good, value = pickle.loads(answer)
    if not good:
        raise value
    return value


def become(uid: int, gid: int = OTHER_GROUP, groups: Sequence[int] = ()) -> None:
    """Be an ordinary user from here on."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Or /proc/self would be root's, and with it the maps of a user namespace.
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def small_port(nic: str = NIC) -> RawPort:
    """A port that fits into what an ordinary user may lock in memory."""
    return RawPort(64, 64, nic, connections=64)


def open_as(uid: int, gid: int = OTHER_GROUP, groups: Sequence[int] = ()) -> int:
    """Try to open a port as that user; returns the errno, or 0."""

    def work() -> int:
        become(uid, gid, groups)
        try:
            small_port().close()
        except OSError as error:
            return error.errno or -1
        return 0

    code: int = in_child(work)
    return code


def grant(grants: Grants) -> None:
    """The request of ``stackmap bind --user --group``."""
    with IPRoute() as route:
        set_qdisc(route, read_nic(route, NIC), grants)


@pytest.fixture(autouse=True)
def granted_to_nobody() -> Iterator[None]:
    yield
    grant(Grants())


def the_grants() -> Grants:
    with IPRoute() as route:
        (nic,) = bound_nics(route)
    return nic.grants


# -- opening a port --


def test_an_ordinary_user_is_refused_and_told_the_remedy() -> None:
    assert open_as(USER) == errno.EPERM

    def sentence() -> str:
        become(USER)
        with pytest.raises(BackendUnavailableError) as refused:
            RingPort(NIC)
        return str(refused.value)

    said = in_child(sentence)
    assert f"stackmap bind {NIC} --user {USER}" in said
    assert "\n" not in said


def test_a_granted_user_may_and_others_may_not() -> None:
    grant(Grants(uid=USER))
    assert open_as(USER) == 0
    assert open_as(OTHER_USER) == errno.EPERM
    assert open_as(OTHER_USER, gid=USER) == errno.EPERM, "a number is not a name of both kinds"
    assert the_grants() == Grants(uid=USER)


def test_a_granted_group_may_and_others_may_not() -> None:
    grant(Grants(gid=GROUP))
    assert open_as(USER, gid=GROUP) == 0
    assert open_as(USER, groups=[OTHER_GROUP, GROUP]) == 0
    assert open_as(USER, groups=[OTHER_GROUP]) == errno.EPERM
    assert open_as(GROUP) == errno.EPERM
    assert the_grants() == Grants(gid=GROUP)


def test_a_grant_replaces_the_one_before() -> None:
    grant(Grants(uid=USER, gid=GROUP))
    assert the_grants() == Grants(uid=USER, gid=GROUP)
    assert open_as(USER) == open_as(OTHER_USER, gid=GROUP) == 0
    grant(Grants(uid=OTHER_USER))
    assert open_as(OTHER_USER) == 0
    assert open_as(USER) == open_as(USER, gid=GROUP) == errno.EPERM
    sh(f"tc qdisc replace dev {NIC} root stackmap")
    assert open_as(OTHER_USER) == 0, "binding again without a word changes nothing"


def test_a_granted_user_works_with_the_port() -> None:
    grant(Grants(uid=USER))
    peer, sock = connect_pair()

    def work() -> bytes:
        become(USER)
        with small_port() as port:
            port.send(port.attach(sock), b"from below")
            return peer.recv(100)

    with closing(peer), closing(sock):
        assert in_child(work) == b"from below"


def test_a_granted_user_may_not_grant() -> None:
    grant(Grants(uid=USER))

    def work() -> int:
        become(USER)
        with IPRoute() as route, pytest.raises(NicError) as refused:
            set_qdisc(route, read_nic(route, NIC), Grants(uid=OTHER_USER))
        assert isinstance(refused.value.__cause__, NetlinkError)
        return int(refused.value.__cause__.code)

    assert in_child(work) == errno.EPERM
    assert the_grants() == Grants(uid=USER)


def test_an_open_port_survives_the_end_of_its_grant() -> None:
    grant(Grants(uid=USER))
    peer, sock = connect_pair()

    def work() -> bytes:
        os.setresuid(USER, USER, 0)
        with small_port() as port:
            id = port.attach(sock)
            os.setresuid(0, 0, 0)
            grant(Grants())
            os.setresuid(USER, USER, USER)
            port.send(id, b"still open")
            return peer.recv(100)

    with closing(peer), closing(sock):
        assert in_child(work) == b"still open"
    assert open_as(USER) == errno.EPERM


def test_a_command_grants_by_name() -> None:
    def bind(*options: str) -> str:
        command = [sys.executable, "-m", "stackmap_cli.main", "bind", NIC, *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    name = pwd.getpwuid(1).pw_name
    said = bind("--user", name, "--group", str(GROUP))
    assert (
        said == f"{NIC} is bound already; now user {name} and group {GROUP} may open ports on it.\n"
    )
    assert the_grants() == Grants(uid=1, gid=GROUP)
    assert bind() == f"{NIC} is bound already.\n"
    assert the_grants() == Grants(uid=1, gid=GROUP)


class UnknownOptions(nla):  # type: ignore[misc]
    nla_flags = NLA_F_NESTED
    prefix = "SM_TCA_"
    nla_map = ((77, "SM_TCA_UNKNOWN", "uint32"),)


def test_no_option_but_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that this module does not know are refused, not ignored."""
    monkeypatch.setattr(plugins[QDISC_KIND], "options", UnknownOptions)
    options = {"attrs": [("SM_TCA_UNKNOWN", 1)]}
    index = socket.if_nametoindex(NIC)
    with IPRoute() as route, pytest.raises(NetlinkError) as refused:
        route.tc("replace", QDISC_KIND, index=index, parent=TC_H_ROOT, options=options)
    assert refused.value.code == errno.EINVAL


# -- limits of a granted user --

#: RLIMIT_MEMLOCK where it was not set.
DEBIANS_MEMLOCK = 8 << 20
MAX_USER_PORTS = 1024


def take(memlock: int, work: Callable[[], Any]) -> Any:
    """Do something as the granted user, who may lock so much memory."""
    grant(Grants(uid=USER))

    def as_user() -> Any:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
        become(USER)
        return work()

    return in_child(as_user)


def test_a_port_beyond_the_limit_of_locked_memory_is_refused_and_told_the_remedy() -> None:
    def sentence() -> str:
        with pytest.raises(BackendUnavailableError) as refused:
            RingPort(NIC)
        return str(refused.value)

    said = take(DEBIANS_MEMLOCK, sentence)
    assert said.startswith("the port's 6144 buffers (24 MiB), with its rings and the records of")
    assert f"user {USER} may lock (RLIMIT_MEMLOCK: 8192 KiB)" in said
    assert "ulimit -l" in said
    assert "\n" not in said


def test_a_smaller_port_fits_into_the_default_limit_of_locked_memory() -> None:
    def work() -> None:
        for _ in range(5):  # what the one before had is there again at once
            with RingPort(NIC, tx_slots=256, rx_slots=256, spare_buffers=1024, connections=1024):
                pass

    take(DEBIANS_MEMLOCK, work)


def test_locked_memory_is_the_users_not_the_processs() -> None:
    """Memory that one process of a user locks counts for the user's others."""
    pages = 1 + 2 * 1 + (2 + 2 * 64 + 64) + 2  # sm_if, rings, buffers, records

    def another_port() -> int:
        def work() -> int:
            try:
                RawPort(64, 64, spare=64, connections=64).close()
            except OSError as error:
                return error.errno or -1
            return 0

        code: int = in_child(work)
        return code

    def work() -> tuple[int, int, int]:
        with RawPort(64, 64, spare=64, connections=64):
            beside = another_port()
        with pytest.raises(OSError) as refused:
            RawPort(64, 64, spare=65 + pages, connections=64)
        return beside, another_port(), refused.value.errno or 0

    limit = (2 * pages - 1) * resource.getpagesize()
    assert take(limit, work) == (errno.ENOMEM, 0, errno.ENOMEM)


def test_locked_memory_of_a_privileged_user_is_not_limited() -> None:
    def work() -> int:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        with RawPort() as port:
            return len(port.pairs)

    assert in_child(work) == 1


def test_a_user_has_so_many_ports_and_no_more() -> None:
    """Others, and the administrator, open theirs all the same."""

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4 * MAX_USER_PORTS, 4 * MAX_USER_PORTS))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
        os.setresuid(USER, USER, 0)
        with contextlib.ExitStack() as stack:
            one = RawPort(4, 4, spare=1, connections=1)
            for _ in range(MAX_USER_PORTS - 1):
                stack.enter_context(RawPort(4, 4, spare=1, connections=1))
            with pytest.raises(BackendUnavailableError) as refused:
                RingPort(NIC, tx_slots=4, rx_slots=4, spare_buffers=1, connections=1)
            os.setresuid(0, 0, 0)
            assert open_as(OTHER_USER, gid=GROUP) == 0
            RawPort(4, 4).close()
            os.setresuid(USER, USER, 0)
            one.close()
            RawPort(4, 4, spare=1, connections=1).close()
            return str(refused.value)

    grant(Grants(uid=USER, gid=GROUP))
    assert in_child(work) == f"user {USER} has {MAX_USER_PORTS} ports open, and may have no more"


def budgets(uid: int) -> set[str]:
    """The packets that a NAPI context may receive in each poll by that user's sync."""
    peer, sock = connect_pair()
    with traced("napi/napi_poll") as trace, closing(peer), closing(sock):

        def work() -> int:
            if uid:
                become(uid)
            with small_port() as port:
                port.attach(sock)
                port.sync(SYNC_RX | SYNC_POLL)
            return os.getpid()

        pid: int = in_child(work)
        return set(re.findall(rf"-{pid} .* for device {NIC} work \d+ budget (\d+)", trace()))


def test_a_granted_user_polls_with_the_default_budget() -> None:
    """More packets at a time are the administrator's, as with SO_BUSY_POLL_BUDGET."""
    grant(Grants(uid=USER))
    # With GRO the NIC has a NAPI context, and without TSO what the peer sends goes through it.
    peer = f"ip netns exec {PEER_NAMESPACE} ethtool -K {NIC}"
    sh(f"ethtool -K {NIC} gro on; {peer} tso off")
    try:
        assert budgets(0) == {"64"}
        assert budgets(USER) == {"8"}
    finally:
        sh(f"ethtool -K {NIC} gro off; {peer} tso on")


# -- namespaces --


def unshare(flags: int) -> None:
    if _libc.unshare(flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def enter_container() -> None:
    """Become root of a new user namespace, which is USER outside, and of a network of its own."""
    become(USER, GROUP)
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {USER} 1")
    Path("/proc/self/gid_map").write_text(f"0 {GROUP} 1")


def in_a_container(work: Callable[[], Any]) -> Any:
    """Do something as root of a container."""

    def enter() -> Any:
        enter_container()
        return work()

    return in_child(enter)


def test_root_of_a_container_has_the_rights_of_root_there() -> None:
    """A user namespace's administrator binds its own NIC, opens a port on it, and grants it."""

    def work() -> list[object]:
        sh("ip link add inner type veth peer name outer && ip link set inner up")
        with IPRoute(ext_ack=True) as route:
            nic = read_nic(route, "inner")
            set_qdisc(route, nic, Grants(uid=0, gid=0))
            found: list[object] = [bound.grants for bound in bound_nics(route)]
            with small_port("inner") as port:
                found.append(port.name)
            with pytest.raises(NicError) as refused:
                set_qdisc(route, nic, Grants(uid=USER))
        return [*found, str(refused.value)]

    grants, name, refusal = in_a_container(work)
    assert (grants, name) == (Grants(uid=0, gid=0), "tcp:inner")
    assert "this user namespace has no such user" in refusal


def test_root_of_a_container_has_no_right_outside() -> None:
    def work() -> tuple[int, int]:
        # The network namespace is the first one's; only the user namespace is new.
        with IPRoute() as route, pytest.raises(NicError) as refused:
            set_qdisc(route, read_nic(route, NIC), Grants(uid=0))
        assert isinstance(refused.value.__cause__, NetlinkError)
        with pytest.raises(OSError) as unopened:
            RawPort()
        return int(refused.value.__cause__.code), unopened.value.errno or 0

    def enter() -> tuple[int, int]:
        become(USER)
        unshare(CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text(f"0 {USER} 1")
        return work()

    assert in_child(enter) == (errno.EPERM, errno.EPERM)


def test_a_grant_reaches_into_user_namespaces() -> None:
    """The granted user may have another number in a namespace of their own."""
    grant(Grants(uid=USER))

    def enter() -> str:
        become(USER)
        unshare(CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text(f"0 {USER} 1")
        with small_port() as port:
            return port.name

    assert in_child(enter) == f"tcp:{NIC}"


def test_a_nic_of_another_namespace_is_not_there() -> None:
    """The peer's end of the wire has the same name, and is not bound."""
    with inside(PEER_NAMESPACE), pytest.raises(OSError) as refused:
        RawPort()
    assert refused.value.errno == errno.ENXIO


# -- looking --


def look_as(uid: int, namespace: str = "") -> dict[str, list[tuple[int, ...]]]:
    """Netlink's answers to that user, in a network namespace."""

    def work() -> dict[str, list[tuple[int, ...]]]:
        if namespace:
            netns.setns(namespace)
        if uid:
            become(uid)
        with Inspector() as inspector:
            return {
                "ports": [(port.mem_id, port.uid) for port in inspector.ports()],
                "rings": [(ring.mem_id, ring.index) for ring in inspector.rings()],
                "connections": [(c.mem_id, c.id, c.inode) for c in inspector.connections()],
            }

    seen: dict[str, list[tuple[int, ...]]] = in_child(work)
    return seen


def test_everybody_may_look_at_their_own_namespace() -> None:
    """An ordinary user is shown what root is, and neither is shown another namespace's."""
    peer, sock = connect_pair()
    with inside(PEER_NAMESPACE):
        sh(f"tc qdisc replace dev {NIC} root stackmap")
    try:
        with inside(PEER_NAMESPACE):
            there = RawPort()
        with there, RawPort(rings=2) as here, closing(peer), closing(sock):
            ids = here.attach(sock), there.attach(peer)
            mine = {
                "ports": [(here.mem_id, 0)],
                "rings": [(here.mem_id, 0), (here.mem_id, 1)],
                "connections": [(here.mem_id, ids[0], os.fstat(sock.fileno()).st_ino)],
            }
            theirs = {
                "ports": [(there.mem_id, 0)],
                "rings": [(there.mem_id, 0)],
                "connections": [(there.mem_id, ids[1], os.fstat(peer.fileno()).st_ino)],
            }
            for uid in (0, USER):
                assert look_as(uid) == mine
                assert look_as(uid, PEER_NAMESPACE) == theirs
    finally:
        with inside(PEER_NAMESPACE):
            sh(f"tc qdisc del dev {NIC} root")


# -- leaks of an open port --


def test_descriptors_are_closed_on_exec() -> None:
    before = descriptors()
    with RingPort(NIC) as port:
        new = descriptors() - before
        assert port._kernel.shared.fd in {fd for fd, name in new if name == "/dev/stackmap"}
        assert not any(os.get_inheritable(fd) for fd, _name in new)
    assert descriptors() <= before


def test_the_descriptor_of_a_ring_is_closed_on_exec(port: RawPort) -> None:
    ring = fcntl.ioctl(port.fd, SMIOC_RING, bytearray(struct.pack("<II", 0, 0)))
    try:
        assert not os.get_inheritable(ring)
    finally:
        os.close(ring)


def descriptors() -> set[tuple[int, str]]:
    """Open files of this process."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((int(link.name), str(link.readlink())))
    return found


def mappings() -> list[str]:
    """Lines of this process's mappings of ports."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if line.endswith("/dev/stackmap")]


def test_a_child_has_no_mapping_and_its_parent_goes_on(two: Attached) -> None:
    assert mappings()
    assert in_child(mappings) == []

    pid = os.fork()
    if not pid:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os._exit(two.port.memory[0])  # touches what it must not have
    _pid, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGSEGV
    two.check_honest()
