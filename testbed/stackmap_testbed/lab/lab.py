"""The lab: two hosts and the wire between them, up for as long as the context lasts."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from stackmap_testbed.lab.accel import choose_accel
from stackmap_testbed.lab.addresses import (
    CLIENT_ADDRESS,
    CLIENT_IPV6,
    CLIENT_MAC,
    SERVER_ADDRESS,
    SERVER_IPV6,
    SERVER_MAC,
)
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.guest import Guest, GuestSettings
from stackmap_testbed.lab.initramfs import GuestIdentity
from stackmap_testbed.lab.kernels import find_kernel
from stackmap_testbed.lab.qemu import find_qemu
from stackmap_testbed.lab.virtiofs import find_virtiofsd
from stackmap_testbed.lab.wire import RelayProcess, Wire

if TYPE_CHECKING:
    from types import TracebackType

Progress = Callable[[str], None]

_HOSTS = f"127.0.0.1 localhost\n::1 localhost\n{SERVER_ADDRESS} server\n{CLIENT_ADDRESS} client\n"
_IDENTITIES = {
    "server": GuestIdentity("server", f"{SERVER_ADDRESS}/24", f"{SERVER_IPV6}/64", _HOSTS),
    "client": GuestIdentity("client", f"{CLIENT_ADDRESS}/24", f"{CLIENT_IPV6}/64", _HOSTS),
}
_MACS = {"server": SERVER_MAC, "client": CLIENT_MAC}
_DEFAULT_MEMORY_MB = {"server": 1536, "client": 1024}


class Lab:
    """Two QEMU guests on one wire.

    Start it from a thread that lives as long as the lab does: the kernel ends
    the guests when the thread that started them ends, so that none is left
    behind whatever happens to the caller.
    """

    def __init__(
        self,
        *,
        kernel: str = "6.12",
        wire: Literal["direct", "relay"] = "direct",
        guests: Collection[str] = ("server", "client"),
        cpus: int = 1,
        memory: int | None = None,
        accel: Literal["kvm", "tcg"] | None = None,
        command_line: str = "",
        workdir: Path | None = None,
        boot_seconds: float = 120.0,
    ) -> None:
        """Describe a lab; ``up`` or the context manager boots it.

        ``accel`` None means KVM where it works.  ``command_line`` is added to the
        kernels'.  A boot that takes longer than ``boot_seconds`` has failed.  Without
        ``workdir`` the consoles and logs go to a temporary directory that is removed at
        the end.

        Raises:
            LabError: it cannot work here; the message says what to do.
        """
        if os.geteuid() != 0:
            raise LabError(
                "the lab shares this machine's root directory with its guests: run it as root"
            )
        if wire == "relay" and set(guests) != {"server", "client"}:
            raise LabError("a wire needs two guests: use wire='direct' with only one")
        find_qemu()
        find_virtiofsd()
        self._kernel = find_kernel(kernel)
        self.release = self._kernel.release
        self.accel: str | None = accel
        self.workdir = workdir
        self._wire_kind = wire
        self._names = tuple(guests)
        self._cpus = cpus
        self._memory = memory
        self._command_line = command_line
        self._boot_seconds = boot_seconds
        self._guests: dict[str, Guest] = {}
        self._wire: Wire | None = None
        self._resources = contextlib.ExitStack()

    def up(self, progress: Progress | None = None) -> Self:
        """Boot the guests and return when both take commands.

        Raises:
            LabError: they do not get there; nothing is left running.
        """
        tell = progress or (lambda _text: None)
        try:
            self._boot(tell)
        except BaseException:
            self.down()
            raise
        return self

    def _boot(self, tell: Progress) -> None:
        workdir = self._prepare_workdir()
        if self.accel is None:
            tell("checking whether KVM can be used")
            self.accel = choose_accel(self._kernel)
        start = time.monotonic()
        tell(f"booting {' and '.join(self._names)}: Linux {self.release}, {self.accel.upper()}")
        networks = self._connect(workdir)
        for name in self._names:
            settings = GuestSettings(
                identity=_IDENTITIES[name],
                mac=_MACS[name],
                kernel=self._kernel,
                accel=self.accel,
                cpus=self._cpus,
                memory=self._memory or _DEFAULT_MEMORY_MB[name],
                command_line=self._command_line,
            )
            self._guests[name] = self._resources.enter_context(
                contextlib.closing(Guest(settings, workdir, networks[name]))
            )
        for end in networks.values():
            end.close()
        for name, guest in self._guests.items():
            guest.wait_ready(self._boot_seconds)
            tell(f"{name} is up after {time.monotonic() - start:.1f} s")

    def _prepare_workdir(self) -> Path:
        if self.workdir is None:
            self.workdir = Path(tempfile.mkdtemp(prefix="stackmap-lab-"))
            self._resources.callback(self._remove_workdir, self.workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        return self.workdir

    def _remove_workdir(self, workdir: Path) -> None:
        shutil.rmtree(workdir, ignore_errors=True)
        self.workdir = None

    def _connect(self, workdir: Path) -> dict[str, socket.socket]:
        """Return each guest's end of the wire."""
        server, server_far = self._pair()
        if self._wire_kind == "direct":
            return {"server": server, "client": server_far}
        client, client_far = self._pair()
        with server_far, client_far:
            relay = self._resources.enter_context(
                contextlib.closing(RelayProcess(server_far, client_far, workdir))
            )
        self._wire = relay.wire
        return {"server": server, "client": client}

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        """Return two connected frame sockets, which are closed at the latest with the lab."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        return self._resources.enter_context(near), self._resources.enter_context(far)

    @property
    def guests(self) -> dict[str, Guest]:
        """The running guests by name."""
        return dict(self._guests)

    @property
    def server(self) -> Guest:
        """The guest at 10.77.0.1."""
        return self._guest("server")

    @property
    def client(self) -> Guest:
        """The guest at 10.77.0.2."""
        return self._guest("client")

    def _guest(self, name: str) -> Guest:
        if name not in self._guests:
            raise LabError(f"the lab has no guest {name} up")
        return self._guests[name]

    @property
    def wire(self) -> Wire:
        """The wire, which can be impaired and captured if the lab has ``wire="relay"``."""
        if self._wire is None:
            raise LabError(
                "this lab's wire is direct and cannot be impaired: build it with wire='relay'"
            )
        return self._wire

    def down(self) -> None:
        """Switch everything off and remove what it left."""
        self._guests = {}
        self._wire = None
        self._resources.close()

    def __enter__(self) -> Self:
        """Boot the lab unless it is up already."""
        if not self._guests:
            self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the lab down."""
        self.down()
