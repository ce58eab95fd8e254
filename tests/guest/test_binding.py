"""A port's NIC that is unbound and bound again, renamed, or goes elsewhere and comes back."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from pyroute2 import IPRoute, netns

from stackmap.inspect import Grants, Inspector, PortInfo
from stackmap_cli.main import main
from stackmap_cli.qdisc import read_nic, set_qdisc
from tests.guest.children import Child
from tests.guest.commands import ip, sh
from tests.guest.peer import inside
from tests.guest.raw import RawPort
from tests.guest.test_rights import USER, become, enter_container, in_child
from tests.guest.wire import PEER_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A NIC of these tests' own.
NAME, NEW_NAME, ADDRESS, PEER_ADDRESS = "smb0", "smb-renamed", "10.81.0.1", "10.81.0.2"
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000
LONG_NAME = "a-name-that-is-longer-than-fifteen"


def bind(name: str = NAME) -> None:
    sh(f"tc qdisc replace dev {name} root stackmap")


def unbind(name: str = NAME) -> None:
    sh(f"tc qdisc del dev {name} root")


def plug() -> None:
    ip(f"""
        link add {NAME} type veth peer {NAME} netns {PEER_NAMESPACE}
        addr add {ADDRESS}/24 dev {NAME}
        link set {NAME} up
    """)
    ip(f"addr add {PEER_ADDRESS}/24 dev {NAME}\nlink set {NAME} up", PEER_NAMESPACE)
    bind()


def unplug() -> None:
    """Delete the wire by its far end, wherever the near one is and whatever it is called."""
    ip(f"link del {NAME}", PEER_NAMESPACE)


@pytest.fixture(autouse=True)
def wire() -> Iterator[None]:
    plug()
    yield
    unplug()


@pytest.fixture
def own_port() -> Iterator[RawPort]:
    with RawPort(16, 16, nic=NAME) as port:
        yield port


def listed(port: RawPort) -> PortInfo:
    with Inspector() as inspector:
        (found,) = [found for found in inspector.ports() if found.mem_id == port.mem_id]
    return found


def seen_as(port: RawPort) -> tuple[str, bool]:
    """The name by which the port is listed, and whether its NIC is bound."""
    found = listed(port)
    if found.ifindex is not None:
        assert socket.if_indextoname(found.ifindex) == found.name.removeprefix("tcp:")
    return found.name, found.ifindex is not None


def check_traffic(port: RawPort) -> None:
    """A new connection over the NIC works, several slots at a time."""
    with socket.create_server((ADDRESS, 0)) as listener:
        with inside(PEER_NAMESPACE):
            peer = socket.create_connection(listener.getsockname())
        sock, _address = listener.accept()
    with closing(peer), closing(sock):
        id = port.attach(sock)
        for k in range(3):
            port.put(port.tx.head + k, id, b"%d" % k)
        port.tx.set_head((port.tx.head + 3) % port.tx.n)
        port.sync()
        assert peer.recv(3, socket.MSG_WAITALL) == b"012"
        port.detach(id)


def test_unbound_and_bound_again(own_port: RawPort) -> None:
    for _ in range(3):
        assert seen_as(own_port) == (f"tcp:{NAME}", True)
        unbind()
        assert seen_as(own_port) == (f"tcp:{NAME}", False)
        check_traffic(own_port)
        bind()
        check_traffic(own_port)
    assert seen_as(own_port) == (f"tcp:{NAME}", True)


def test_a_binding_that_replaces_another(own_port: RawPort) -> None:
    """By handles the kernel makes a new qdisc, and takes the old one away afterwards."""
    for handle in (1, 2):
        sh(f"tc qdisc replace dev {NAME} handle {handle}: root stackmap")
        assert seen_as(own_port) == (f"tcp:{NAME}", True)
        check_traffic(own_port)


def test_a_binding_that_somebody_else_replaces(own_port: RawPort) -> None:
    """A network manager may: the port goes on without its NIC, until that is bound again."""
    for kind in ("pfifo", "stackmap"):
        sh(f"tc qdisc replace dev {NAME} root {kind}")
        assert seen_as(own_port) == (f"tcp:{NAME}", kind == "stackmap")
        check_traffic(own_port)


def test_a_renamed_nic(own_port: RawPort) -> None:
    sh(f"ip link set {NAME} down; ip link set {NAME} name {NEW_NAME}; ip link set {NEW_NAME} up")
    assert seen_as(own_port) == (f"tcp:{NEW_NAME}", True)
    check_traffic(own_port)
    with RawPort(16, 16, nic=NEW_NAME) as other:
        assert other.name == f"tcp:{NEW_NAME}"
    unbind(NEW_NAME)
    assert seen_as(own_port) == (f"tcp:{NEW_NAME}", False)


def test_an_alternative_name() -> None:
    """It opens the port, which is listed by the NIC's own name."""
    sh(f"ip link property add dev {NAME} altname {LONG_NAME}")
    with RawPort(16, 16, nic=LONG_NAME) as port:
        assert seen_as(port) == (f"tcp:{NAME}", True)


def test_a_nic_back_from_another_namespace(own_port: RawPort) -> None:
    """In another namespace it is bound for others; back here it is the port's again."""
    index = socket.if_nametoindex(NAME)
    sh("ip netns add elsewhere")
    try:
        sh(f"ip link set {NAME} netns elsewhere")
        with inside("elsewhere"):
            sh(f"ip link set {NAME} up")
            bind()
            with RawPort(16, 16, nic=NAME) as theirs:
                assert seen_as(theirs) == (f"tcp:{NAME}", True)
        assert seen_as(own_port) == (f"tcp:{NAME}", False)
        sh(f"""
            ip -n elsewhere link set {NAME} netns {os.getpid()}
            ip addr add {ADDRESS}/24 dev {NAME}
            ip link set {NAME} up
        """)
    finally:
        sh("ip netns del elsewhere")
    assert socket.if_nametoindex(NAME) == index
    assert seen_as(own_port) == (f"tcp:{NAME}", False)
    bind()
    assert seen_as(own_port) == (f"tcp:{NAME}", True)
    check_traffic(own_port)


def test_another_nic_of_the_same_name(own_port: RawPort) -> None:
    """It is not the one that the port was opened on."""
    unplug()
    plug()
    assert seen_as(own_port) == (f"tcp:{NAME}", False)
    check_traffic(own_port)


def test_binding_again_gives_no_rights_back() -> None:
    """The grant belongs to the binding, though the NIC is the same."""
    with IPRoute() as route:
        set_qdisc(route, read_nic(route, NAME), Grants(uid=USER))

    def may_open() -> bool:
        def work() -> bool:
            become(USER)
            try:
                RawPort(16, 16, nic=NAME, connections=16).close()
            except PermissionError:
                return False
            return True

        opened: bool = in_child(work)
        return opened

    with RawPort(16, 16, nic=NAME):
        assert may_open()
        unbind()
        bind()
        assert not may_open()


def test_a_notification_speaks_as_the_namespace_of_the_nic_does() -> None:
    """Root of a container sees its own users' numbers, also after the host changes the binding."""

    def listen_in_a_container(tell: Callable[[], object]) -> None:
        enter_container()
        with IPRoute() as route:
            route.bind()
            sh("""
                ip link add inner type veth peer name outer
                ip link set inner up
                tc qdisc replace dev inner root stackmap
            """)
            tell()
            told = None
            while told is None:
                for message in route.get():
                    if message["event"] == "RTM_NEWQDISC" and message.get_attr("TCA_OPTIONS"):
                        told = message.get_attr("TCA_OPTIONS").get_attr("SM_TCA_UID")
        assert told == 0

    with Child(listen_in_a_container) as container:
        container.await_word()

        def change_from_outside() -> None:
            netns.setns(f"/proc/{container.pid}/ns/net")
            with IPRoute() as route:
                set_qdisc(route, read_nic(route, "inner"), Grants(uid=USER))

        in_child(change_from_outside)
        assert container.await_end() == 0


@contextmanager
def a_tap() -> Iterator[int]:
    """A NIC of one queue, ``smt0``, that comes up; its driver is whoever reads the descriptor."""
    sh("modprobe -q tun")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"smt0", IFF_TAP | IFF_NO_PI))
        ip("link set smt0 up")
        yield fd
    finally:
        os.close(fd)


def test_the_default_qdisc_leaves_a_nic_unbound() -> None:
    """The kernel never attaches a default qdisc, so ours refuses, and the kernel takes another."""
    setting = Path("/proc/sys/net/core/default_qdisc")
    before = setting.read_text()
    frame = b"\2\0\0\0\0\1" * 2 + b"\x88\xb5" + bytes(range(46))
    setting.write_text("stackmap")
    try:
        with a_tap() as tap, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("smt0", 0))
            sock.send(frame)
            deadline = time.monotonic() + 10
            while os.read(tap, 2000) != frame:  # what IPv6 asks for comes as well
                assert time.monotonic() < deadline
    finally:
        setting.write_text(before)


def test_the_command_line_lists_what_there_is(own_port: RawPort) -> None:
    unbind()
    done = CliRunner().invoke(main, ["ports"], catch_exceptions=False)
    assert f"tcp:{NAME} (no longer bound)" in done.output
    bind()
    done = CliRunner().invoke(main, ["ports"], catch_exceptions=False)
    assert "no longer bound" not in done.output
    assert listed(own_port).name == f"tcp:{NAME}"
