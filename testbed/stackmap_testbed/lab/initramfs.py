"""Build the small first root file system that turns into a read-only view of this machine.

The guest's root is the host's own root over virtiofs, so nothing has to be
installed in an image: the project, its virtual environment and Python have the
same paths inside.  What must be writable is a tmpfs on top.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stackmap_testbed.lab.cpio import CpioWriter
from stackmap_testbed.lab.errors import MissingToolError
from stackmap_testbed.lab.kernels import Kernel, ModuleSet

if TYPE_CHECKING:
    from collections.abc import Sequence

PROBE_MARKER = "stackmap-probe-booted"
ROOT_TAG = "root"

_TMPFS = ("/tmp", "/run", "/var/tmp", "/var/log")
_APPLETS = (
    *("sh", "mount", "umount", "mkdir", "ln", "insmod", "ip", "hostname", "switch_root"),
    "poweroff",
)
_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "virtio_net")


@dataclass(frozen=True)
class GuestIdentity:
    """Settings in which one guest differs from another."""

    name: str
    ipv4: str
    ipv6: str
    hosts: str


def build_initramfs(
    kernel: Kernel,
    identity: GuestIdentity,
    agent: Sequence[str],
    keep: Sequence[Path],
    modules: Sequence[str] = (),
) -> bytes:
    """Return the archive for one guest.

    ``agent`` is the command that becomes process 1 once the root is in place;
    ``keep`` are paths that must stay visible even where a tmpfs is put on top;
    ``modules`` are loaded before those that every guest needs.

    Raises:
        MissingToolError: busybox or a kernel module is missing.
    """
    available = ModuleSet(kernel)
    cpio = _busybox_archive()
    loads = []
    for path in available.load_order([*modules, *_MODULES]):
        name = "/modules/" + path.rsplit("/", 1)[-1].removesuffix(".xz")
        cpio.file(name, available.read(path))
        loads.append(name)
    cpio.file("/init", _init_script(kernel, identity, agent, keep, loads).encode(), 0o755)
    return cpio.finish()


def build_probe_initramfs() -> bytes:
    """Return an archive that says it has booted and switches off: proof that an accelerator works.

    Raises:
        MissingToolError: busybox is missing.
    """
    cpio = _busybox_archive()
    cpio.file("/init", f"#!/bin/sh\necho {PROBE_MARKER}\n/bin/poweroff -f\n".encode(), 0o755)
    return cpio.finish()


def _busybox_archive() -> CpioWriter:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise MissingToolError(
            "busybox is not installed: install it with 'apt-get install busybox-static'"
        )
    cpio = CpioWriter()
    for directory in ("/proc", "/sys", "/dev", "/host"):
        cpio.directory(directory)
    cpio.device("/dev/console", 5, 1)
    cpio.file("/bin/busybox", Path(busybox).resolve().read_bytes(), 0o755)
    for applet in _APPLETS:
        cpio.symlink(f"/bin/{applet}", "busybox")
    return cpio


def _init_script(
    kernel: Kernel,
    identity: GuestIdentity,
    agent: Sequence[str],
    keep: Sequence[Path],
    loads: Sequence[str],
) -> str:
    insmods = "\n".join(f"insmod {path}" for path in loads)
    return f"""#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
set -e
{insmods}
mount -t virtiofs -o ro {ROOT_TAG} /host
mount --bind {shlex.quote(f"/host{kernel.modules.parent}")} /host/lib/modules
{_tmpfs_commands(keep)}
hostname {identity.name}
ip link set lo up
echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra
if [ -d /proc/sys/net/ipv6/conf/eth0 ]; then
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
    ip link set eth0 up
    ip addr add {identity.ipv4} dev eth0
    ip addr add {identity.ipv6} dev eth0
fi
printf %s {shlex.quote(identity.hosts)} >/host/run/hosts
mount --bind /host/run/hosts /host/etc/hosts
mount -t debugfs debugfs /sys/kernel/debug
mount --move /proc /host/proc
mount --move /sys /host/sys
mount --move /dev /host/dev
ln -s /proc/self/fd /host/dev/fd
ln -s fd/0 /host/dev/stdin
ln -s fd/1 /host/dev/stdout
ln -s fd/2 /host/dev/stderr
mkdir -p /host/dev/pts /host/dev/shm
mount -t devpts devpts /host/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /host/dev/shm
exec switch_root /host {shlex.join(agent)}
"""


def _tmpfs_commands(keep: Sequence[Path]) -> str:
    """Put a tmpfs on each writable place, then bring back what it would have hidden."""
    hidden = [str(path) for path in keep if any(Path(place) in path.parents for place in _TMPFS)]
    lines = []
    for number, path in enumerate(hidden):
        kept = f"/keep/{number}"
        lines += [f"mkdir -p {kept}", f"mount --bind {shlex.quote('/host' + path)} {kept}"]
    lines += [f"mount -t tmpfs -o mode={_mode(place)} tmpfs /host{place}" for place in _TMPFS]
    for number, path in enumerate(hidden):
        target = shlex.quote("/host" + path)
        lines += [f"mkdir -p {target}", f"mount --move /keep/{number} {target}"]
    return "\n".join(lines)


def _mode(place: str) -> str:
    return "1777" if place.endswith("tmp") else "755"
