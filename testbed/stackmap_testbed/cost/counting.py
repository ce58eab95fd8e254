"""A machine that counts its instructions: both ends of a connection, driver and stack in one guest.

Two virtio NICs of the guest are joined by a hub; one is in a network namespace of its own, so that
what goes from one to the other goes through both drivers.  Time in the guest passes by
instructions executed and the wire takes a fixed time, so what is counted does not depend on how
busy this machine is.

The machine has two processors, each end's NIC and program on its own, and each block of code is
counted by processor: what the server's processor executes is the server's, its kernel's part
included.

No NIC on the hub has several queues.  For a server with two, a pair of veths takes the NICs' place
(:mod:`stackmap_testbed.cost.queues`).
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stackmap_testbed.cost.blocks import Section, read_sections
from stackmap_testbed.cost.queues import (
    PROCESSORS,
    TURN,
    pair,
    receive_at_client,
    receive_at_server,
)
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
VIRTIO = "virtio-net"
VMXNET3 = "vmxnet3"
#: The server's NIC is one of these.  On the hub, virtio has no offloads; the other one can send
#: scattered pages, and computes checksums.
NICS = (VIRTIO, VMXNET3)
#: The one that has several queues.
VETH = "veth"
CLIENT_NIC = "eth1"
#: Prefix of commands in the guest that run at the client's end.
AT_CLIENT = ("ip", "netns", "exec", "client")

#: The server's processor, and the prefix of commands that run on it.
SERVER_PROCESSOR = 1
ON_SERVER_PROCESSOR = ("taskset", "--cpu-list", str(SERVER_PROCESSOR))

#: How long a packet is on its way.
WIRE_NS = 10_000
#: How long the client's NIC gathers packets where requests come in bursts: long enough for some
#: hundred connections to send theirs.
BURST_NS = 20_000_000

#: The folder of ``_mark.h``, which says what the load executes as a marker.
_MARK_FOLDER = Path(__file__).parents[1] / "load"
_MACS = (SERVER_MAC, CLIENT_MAC)
_IDENTITY = GuestIdentity(
    "server", f"{SERVER_ADDRESS}/24", f"{SERVER_IPV6}/64", "127.0.0.1 localhost\n"
)
_BOOT_SECONDS = 600.0
# Nothing at random: where the kernel and programs are in memory decides about cache line sharing
# and hash chains.  And no watchdogs: while the guest waits for this machine (for a file), its time
# jumps from timer to timer, so hours pass in seconds.
_REPEATABLE = "nokaslr norandmaps nowatchdog sysctl.kernel.hung_task_timeout_secs=0"
# All that no processor is named for, interrupts included, is on the first one.  The others start
# after the boot.
_ON_FIRST_PROCESSOR = "isolcpus={others} irqaffinity=0 maxcpus=1"
# Neighbours are not asked for in the middle of a measurement.
_SETUP = f"""
set -e
ip netns add client
ip link set {CLIENT_NIC} netns client
ip -n client link set lo up
ip -n client addr add {CLIENT_ADDRESS}/24 dev {CLIENT_NIC}
ip -n client link set {CLIENT_NIC} up
ip neigh replace {CLIENT_ADDRESS} lladdr {_MACS[1]} dev {SERVER_NIC} nud permanent
ip -n client neigh replace {SERVER_ADDRESS} lladdr {_MACS[0]} dev {CLIENT_NIC} nud permanent
"""
# Linux 6.1 waits in a loop without PAUSE for a processor that starts.  One in such a loop uses all
# instructions up to QEMU's next timer, of which QEMU 7.2 then leaves the other processor none.  So
# another task on the processor that waits executes PAUSE, which ends its turn, and jumps back.
_PAUSE = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("f390ebfc"))
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
# Timers, too, stay where they were started.
_SEPARATE = f"""
set -e
{sys.executable} -c '{_PAUSE}' &
for online in /sys/devices/system/cpu/cpu[1-9]/online; do echo 1 >$online; done
kill $!
echo 1 >/sys/devices/virtual/workqueue/cpumask
sysctl -q kernel.timer_migration=0 vm.stat_interval=100000
"""
_INTERRUPTS = f"""
set -e
device=$(readlink -f /sys/class/net/{SERVER_NIC}/device)
while [ ! -d $device/msi_irqs ]; do device=${{device%/*}}; done
for irq in $(ls $device/msi_irqs); do
    [ ! -d /proc/irq/$irq ] || echo {SERVER_PROCESSOR} >/proc/irq/$irq/smp_affinity_list
done
"""


# QEMU 7.2 cannot segment for TCP on a hub; it makes fragments of IP instead.
_WITHOUT_SEGMENTATION = ["ethtool", "-K", SERVER_NIC, "tso", "off", "lro", "off"]


class Counter:
    """Return the plugin's output.

    Args:
        path: the file of its counts.
        blocks: the file of its counts by block of code.
    """

    def __init__(self, path: Path, blocks: Path) -> None:
        self._path = path
        self._blocks = blocks
        self._read = 0

    def marks(self) -> list[int]:
        """The instructions executed since the start of the machine, at each marker so far."""
        with self._path.open("rb") as file:
            (number,) = struct.unpack("=Q", file.read(8))
            return list(struct.unpack(f"={number}Q", file.read(8 * number)))

    def sections(self) -> list[Section]:
        """The blocks executed before each marker that was met since the last call."""
        with self._blocks.open("rb") as file:
            file.seek(self._read)
            found = read_sections(file.read())
            self._read = file.tell()
        return found


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


def _devices(nic: str, plugin: Path, counts: Path, blocks: Path, client_ns: int) -> tuple[str, ...]:
    """The counter, the hub and its NICs; ``client_ns`` is how long the client's gathers packets.

    Veths are made by the guest: they need no hub.

    A virtio NIC's packets leave by a timer of the guest's own time, in the guest's thread (no
    ioeventfd): otherwise it would be a matter of luck how many packets a busy machine finds
    waiting.  Other NICs' leave at the doorbell.
    """
    arguments = ["-plugin", f"{plugin},out={counts},blocks={blocks}"]
    if nic == VETH:
        arguments[1] += f",turn={TURN}"
        return tuple(arguments)
    for number, (mac, wire_ns) in enumerate(zip(_MACS, (WIRE_NS, client_ns), strict=True)):
        arguments += ["-netdev", f"hubport,id=hub{number},hubid=0"]
        place = f"netdev=hub{number},mac={mac},romfile="
        if number == 0 and nic != VIRTIO:
            arguments += ["-device", f"{nic},{place}"]
            continue
        timer = f"ioeventfd=off,tx=timer,x-txtimer={wire_ns}"
        arguments += ["-device", f"virtio-net-pci,{place},{timer}"]
    return tuple(arguments)


@contextlib.contextmanager
def counting_guest(
    kernel: Kernel, memory: int, *, bursts: bool = False, nic: str = VIRTIO, boot: str = ""
) -> Iterator[tuple[Guest, Counter]]:
    """Boot the machine.

    Args:
        kernel: its kernel.
        memory: its memory, in megabytes.
        bursts: whether what the client sends within ``BURST_NS`` arrives at once.
        nic: the server's, one of ``NICS``, or ``VETH``, which comes with more processors.
        boot: further words on its kernel's command line.

    Raises:
        LabError: it cannot be built or does not boot.
    """
    with tempfile.TemporaryDirectory(prefix="stackmap-count-") as folder:
        workdir = Path(folder)
        counts = workdir / "counts"
        blocks = workdir / "blocks"
        processors = PROCESSORS if nic == VETH else 2
        alone = _ON_FIRST_PROCESSOR.format(others=f"1-{processors - 1}")
        settings = GuestSettings(
            identity=_IDENTITY,
            mac=_MACS[0],
            kernel=kernel,
            accel="icount",
            cpus=processors,
            memory=memory,
            command_line=f"{_REPEATABLE} {alone} {boot}".strip(),
            extra=_devices(
                nic, build_plugin(workdir), counts, blocks, BURST_NS if bursts else WIRE_NS
            ),
            modules=(nic,) if nic == VMXNET3 else (),
        )
        with contextlib.closing(Guest(settings, workdir, None)) as guest:
            guest.wait_ready(_BOOT_SECONDS)
            if nic == VETH:
                guest.run(pair(SERVER_NIC, CLIENT_NIC))
            guest.run(_SETUP)
            guest.run(_SEPARATE, timeout=_BOOT_SECONDS)
            if nic == VETH:
                guest.run(receive_at_server(SERVER_NIC))
                guest.run([*AT_CLIENT, "sh", "-c", receive_at_client(CLIENT_NIC)])
            else:
                guest.run(_INTERRUPTS)
            if nic == VMXNET3:
                guest.run(_WITHOUT_SEGMENTATION)
            yield guest, Counter(counts, blocks)
