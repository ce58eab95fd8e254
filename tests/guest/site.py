"""Two namespaces with a bound NIC between them, and everything that can be done to them.

Lifetimes are tried here, and not on the wire of the other tests, because it is taken apart and
built again.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
from pathlib import Path

from stackmap_testbed.lab.kernel_log import offending_lines, parse_record
from tests.guest.commands import ip, sh
from tests.guest.peer import inside
from tests.waiting import eventually

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_DELETE_MODULE = 176
_SYS_FINIT_MODULE = 313
_RECORD_MAX = 8192


def module_file() -> Path:
    """The module that this guest has loaded."""
    named = os.environ.get("STACKMAP_MODULE")
    if named:
        return Path(named)
    root = Path(__file__).resolve().parents[2]
    return root / "build" / "kmod" / os.uname().release / "stackmap.ko"


def references() -> int:
    """The module's reference count: bound NICs, open ports, ports whose buffers TCP holds."""
    return int(Path("/sys/module/stackmap/refcnt").read_text())


def remove_module() -> int:
    """Try to unload the module without waiting; returns the errno, or 0."""
    if _libc.syscall(_SYS_DELETE_MODULE, b"stackmap", os.O_NONBLOCK) == 0:
        return 0
    return ctypes.get_errno()


def load_module() -> None:
    """Load the module again."""
    fd = os.open(module_file(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syscall(_SYS_FINIT_MODULE, fd, b"", 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(module_file()))
    finally:
        os.close(fd)


class KernelLog:
    """The kernel's log from now on."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def complaints(self) -> list[str]:
        """Reports of bugs, warnings, stalls or leaks since the last call."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._fd, _RECORD_MAX).decode(errors="replace")
            except BlockingIOError:
                return offending_lines(lines)
            except OSError as error:
                if error.errno != errno.EPIPE:  # overwritten before we came: go on behind it
                    raise
                continue
            lines.append(parse_record(record)[1])

    def close(self) -> None:
        os.close(self._fd)


class Site:
    """The application's namespace, the peer's, and a veth pair whose near end is bound."""

    app = "lifetimes-app"
    peer = "lifetimes-peer"
    nic = "sm1"
    address = "10.79.0.1"
    peer_address = "10.79.0.2"

    def build(self) -> None:
        """Make what is not there; the far namespace lasts, the near one and the wire may not."""
        if not Path("/run/netns", self.peer).exists():
            self._add_namespace(self.peer)
        if not Path("/run/netns", self.app).exists():
            self._add_namespace(self.app)
        self.plug()
        self._set_up(self.app, self.address)
        self.bind()

    @staticmethod
    def _add_namespace(name: str) -> None:
        ip(f"netns add {name}")
        ip("link set lo up", name)

    def plug(self) -> None:
        """Connect the namespaces by a pair of NICs."""
        ip(f"link add {self.nic} netns {self.app} type veth peer {self.nic} netns {self.peer}")
        self._set_up(self.peer, self.peer_address)

    def _set_up(self, namespace: str, address: str) -> None:
        """Give an end of the wire its address, and set it up."""
        ip(f"addr add {address}/24 dev {self.nic}\nlink set {self.nic} up", namespace)

    def unplug(self) -> None:
        """Take the application's NIC out of the machine."""
        sh(f"ip -n {self.app} link del {self.nic}")

    def unplugged(self) -> None:
        """Wait until the peer's NIC is gone too, and with it all that held the wire."""
        eventually(
            lambda: not self.has_nic(self.peer), lambda: "the namespace or its NIC never went away"
        )

    def has_nic(self, namespace: str) -> bool:
        """Whether an end of the wire is there."""
        with inside(namespace):
            return self.nic in (name for _index, name in socket.if_nameindex())

    def bind(self) -> None:
        """Give the NIC to the module."""
        sh(f"tc -n {self.app} qdisc replace dev {self.nic} root stackmap")

    def unbind(self) -> None:
        """Take the NIC away from the module."""
        sh(f"tc -n {self.app} qdisc del dev {self.nic} root")

    def binding_references(self) -> int:
        """How many references on the module a binding has: its root qdisc's and each FIFO's."""
        command = ["ip", "-n", self.app, "-details", "-json", "link", "show", self.nic]
        found = subprocess.run(command, capture_output=True, check=True)
        queues: int = json.loads(found.stdout)[0]["num_tx_queues"]
        return 1 + queues

    def link_down(self) -> None:
        sh(f"ip -n {self.app} link set {self.nic} down")

    def link_up(self) -> None:
        sh(f"ip -n {self.app} link set {self.nic} up")

    def delete_app_namespace(self) -> None:
        """Remove the namespace's name; the namespace itself lives on for the processes in it."""
        sh(f"ip netns del {self.app}")

    def withhold_acks(self) -> None:
        """Lose everything that the peer sends."""
        sh(f"tc -n {self.peer} qdisc replace dev {self.nic} root netem loss 100%")

    def pass_acks(self) -> None:
        """Undo it."""
        sh(f"tc -n {self.peer} qdisc del dev {self.nic} root")

    def remove(self) -> None:
        """Leave nothing behind."""
        for namespace in (self.app, self.peer):
            if Path("/run/netns", namespace).exists():
                sh(f"ip netns del {namespace}")
