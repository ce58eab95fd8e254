"""A machine that counts its instructions: both ends of a connection, driver and stack in one guest.

Two virtio NICs of the guest are joined by a hub; one is in a network namespace of its own, so that
what goes from one to the other goes through both drivers.  Time in the guest passes by
instructions executed and the wire takes a fixed time, so what is counted does not depend on how
busy this machine is.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stackmap_testbed.lab.addresses import (
    CLIENT_ADDRESS,
    CLIENT_MAC,
    SERVER_ADDRESS,
    SERVER_IPV6,
    SERVER_MAC,
)
from stackmap_testbed.lab.errors import LabError, MissingToolError
from stackmap_testbed.lab.guest import Guest, GuestSettings
from stackmap_testbed.lab.initramfs import GuestIdentity
from stackmap_testbed.lab.kernels import Kernel

SERVER_NIC = "eth0"
#: Prefix of commands in the guest that run at the client's end.
AT_CLIENT = ("ip", "netns", "exec", "client")

#: How long a packet is on its way.
WIRE_NS = 10_000

#: The folder of ``_mark.h``, which says what the load executes as a marker.
_MARK_FOLDER = Path(__file__).parents[1] / "load"
_CLIENT_NIC = "eth1"
_MACS = (SERVER_MAC, CLIENT_MAC)
_IDENTITY = GuestIdentity(
    "server", f"{SERVER_ADDRESS}/24", f"{SERVER_IPV6}/64", "127.0.0.1 localhost\n"
)
_BOOT_SECONDS = 600.0
# Nothing at random: where the kernel and programs are in memory decides about cache line sharing
# and hash chains.  And no watchdogs: while the guest waits for this machine (for a file), its time
# jumps from timer to timer, so hours pass in seconds.
_COMMAND_LINE = "nokaslr norandmaps nowatchdog sysctl.kernel.hung_task_timeout_secs=0"
# Neighbours are not asked for in the middle of a measurement.
_SETUP = f"""
set -e
ip netns add client
ip link set {_CLIENT_NIC} netns client
ip -n client link set lo up
ip -n client addr add {CLIENT_ADDRESS}/24 dev {_CLIENT_NIC}
ip -n client link set {_CLIENT_NIC} up
ip neigh replace {CLIENT_ADDRESS} lladdr {_MACS[1]} dev {SERVER_NIC} nud permanent
ip -n client neigh replace {SERVER_ADDRESS} lladdr {_MACS[0]} dev {_CLIENT_NIC} nud permanent
"""


class Counter:
    """Return the plugin's output."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def marks(self) -> list[int]:
        """The instructions executed since the start of the machine, at each marker so far."""
        with self._path.open("rb") as file:
            (number,) = struct.unpack("=Q", file.read(8))
            return list(struct.unpack(f"={number}Q", file.read(8 * number)))


def build_plugin(folder: Path) -> Path:
    """Compile the plugin; returns its path.

    Raises:
        MissingToolError: there is no compiler.
        LabError: it does not compile.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise MissingToolError("gcc is not installed: install it with 'apt-get install gcc'")
    plugin = folder / "count_plugin.so"
    source = Path(__file__).with_name("_count_plugin.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"]
    built = subprocess.run(
        [*command, "-Werror", f"-I{_MARK_FOLDER}", "-o", str(plugin), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        raise LabError(f"{source.name} does not compile: {built.stderr.strip()}")
    return plugin


def _devices(plugin: Path, counts: Path) -> tuple[str, ...]:
    """The counter, the hub and its NICs.

    A NIC's packets leave by a timer of the guest's own time, in the guest's thread (no ioeventfd):
    otherwise it would be a matter of luck how many packets a busy machine finds waiting.
    """
    arguments = ["-plugin", f"{plugin},out={counts}"]
    for number, mac in enumerate(_MACS):
        arguments += ["-netdev", f"hubport,id=hub{number},hubid=0"]
        device = f"virtio-net-pci,netdev=hub{number},mac={mac},romfile=,ioeventfd=off"
        arguments += ["-device", f"{device},tx=timer,x-txtimer={WIRE_NS}"]
    return tuple(arguments)


@contextlib.contextmanager
def counting_guest(kernel: Kernel, memory: int) -> Iterator[tuple[Guest, Counter]]:
    """Boot the machine, with so many megabytes.

    Raises:
        LabError: it cannot be built or does not boot.
    """
    with tempfile.TemporaryDirectory(prefix="stackmap-count-") as folder:
        workdir = Path(folder)
        counts = workdir / "counts"
        settings = GuestSettings(
            identity=_IDENTITY,
            mac=_MACS[0],
            kernel=kernel,
            accel="icount",
            cpus=1,
            memory=memory,
            command_line=_COMMAND_LINE,
            extra=_devices(build_plugin(workdir), counts),
        )
        with contextlib.closing(Guest(settings, workdir, None)) as guest:
            guest.wait_ready(_BOOT_SECONDS)
            guest.run(_SETUP)
            yield guest, Counter(counts)
