"""Find QEMU and its features on this machine, and make the command line of a guest."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stackmap_testbed.lab.errors import MissingToolError

if TYPE_CHECKING:
    from pathlib import Path

    from stackmap_testbed.lab.kernels import Kernel

AGENT_PORT = "stackmap.agent"

# An emulated processor without ERMS ("enhanced rep movsb"): with it, the kernel copies and clears
# memory by instructions that QEMU carries out byte by byte.
#
# "icount" is a machine in which time passes by instructions executed (2 ns each) and not by the
# host's clock, and nothing is left to chance: what it counts repeats.
_ACCEL_ARGUMENTS = {
    "kvm": ["-accel", "kvm", "-cpu", "max"],
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max,-erms"],
    "icount": [
        *("-cpu", "max"),
        *("-accel", "tcg", "-icount", "shift=1,sleep=off", "-seed", "1"),
        *("-rtc", "base=2024-01-01,clock=vm"),
    ],
}


@dataclass(frozen=True)
class Sockets:
    """Descriptors a guest's QEMU inherits, connected already: no path can be in use or stale."""

    root: int
    agent: int
    control: int
    network: int | None


def find_qemu() -> str:
    """Return the path of QEMU.

    Raises:
        MissingToolError: it is not installed.
    """
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise MissingToolError(
            "QEMU is not installed: install it with 'apt-get install qemu-system-x86'"
        )
    return path


def machine_arguments(
    accel: str, kernel: Kernel, initramfs: Path, console: Path, memory: int
) -> list[str]:
    """Return the command for a bare machine that boots this kernel, be it a probe or a guest."""
    return [
        find_qemu(),
        *_ACCEL_ARGUMENTS[accel],
        *("-machine", "pc,memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"),
        *("-m", f"{memory}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{console}"),
        *("-kernel", str(kernel.image)),
        *("-initrd", str(initramfs)),
    ]


def device_arguments(
    name: str, cpus: int, mac: str, sockets: Sockets, command_line: str
) -> list[str]:
    """Return what makes the bare machine a guest of the lab: root, agent, control and network."""
    # No huge pages: khugepaged would copy memory in the middle of a measurement.
    append = (
        "console=ttyS0 loglevel=5 panic=-1 log_buf_len=4M no_timer_check "
        f"transparent_hugepage=never {command_line}"
    )
    arguments = [
        *("-name", name),
        *("-smp", str(cpus)),
        *("-append", append.strip()),
        *("-chardev", f"socket,id=root,fd={sockets.root}"),
        *("-device", "vhost-user-fs-pci,chardev=root,tag=root"),
        *("-chardev", f"socket,id=agent,fd={sockets.agent}"),
        *("-device", "virtio-serial-pci"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
        *("-chardev", f"socket,id=control,fd={sockets.control}"),
        *("-mon", "chardev=control,mode=control"),
    ]
    if sockets.network is not None:
        arguments += ["-netdev", f"dgram,id=wire,local.type=fd,local.str={sockets.network}"]
        arguments += ["-device", f"virtio-net-pci,netdev=wire,mac={mac},romfile="]
    return arguments
