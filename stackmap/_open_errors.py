"""Explain in one sentence why a port could not be opened."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

from ._device import DEVICE
from ._ring_c import lib
from .errors import BackendUnavailableError

_PAGE = 4096
_SPARES_PER_TX_SLOT = 4
_CONNECTIONS = 16384
_CGROUPS = Path("/sys/fs/cgroup")

_SENTENCES = {
    errno.ENOENT: "{device} does not exist: load the kernel module (`stackmap bind NIC` does)",
    errno.EACCES: "you may not open {device}: run this as root, or give yourself access to it",
    errno.EPERM: "you may not open ports on {nic}: run this as root, or let root run"
    " `stackmap bind {nic} --user {uid}`",
    errno.ENXIO: "the NIC {nic} is not bound: run `stackmap bind {nic}` first",
}
_LIMITS = {
    lib.SM_LIMIT_RINGS: "a port has 1 to 64 pairs of rings, not {rings}",
    lib.SM_LIMIT_SLOTS: "rings have 4 to 16384 slots, not {tx} and {rx}",
    lib.SM_LIMIT_BUFFERS: "a port has at most 1048576 buffers, not {buffers}: ask for fewer slots,"
    " spare buffers or extra buffers",
    lib.SM_LIMIT_CONNECTIONS: "a port has at most 1048576 connections, not {connections}",
    lib.SM_LIMIT_MEMORY: "there is not enough memory for the port's {buffers} buffers"
    " ({mib} MiB){cgroup}: ask for fewer slots, spare buffers or extra buffers",
    lib.SM_LIMIT_PORTS: "65534 ports are open on this machine, and it can have no more",
    lib.SM_LIMIT_MEMLOCK: "the port's {buffers} buffers ({mib} MiB), with its rings and the records"
    " of {connections} connections, exceed the memory that user {uid} may lock"
    " (RLIMIT_MEMLOCK: {memlock}): ask for fewer slots, spare buffers or connections, or raise the"
    " limit (`ulimit -l`, limits.conf, or LimitMEMLOCK= of a systemd unit)",
    lib.SM_LIMIT_USER_PORTS: "user {uid} has 1024 ports open, and may have no more",
}


def open_error(code: int, nic: str, sizes: Any) -> BackendUnavailableError:
    """Return the exception for the errno with which opening failed, for these sizes."""
    buffers = sizes.rings * (sizes.tx_slots + sizes.rx_slots) + sizes.extra_buffers
    buffers += sizes.spare_buffers or sizes.rings * sizes.tx_slots * _SPARES_PER_TX_SLOT
    sentence = _LIMITS.get(sizes.limit) or _SENTENCES.get(code) or f"{DEVICE}: {os.strerror(code)}"
    return BackendUnavailableError(
        sentence.format(
            device=DEVICE,
            nic=nic,
            uid=os.geteuid(),
            rings=sizes.rings,
            tx=sizes.tx_slots,
            rx=sizes.rx_slots,
            connections=sizes.connections or _CONNECTIONS,
            buffers=buffers,
            mib=buffers * _PAGE >> 20,
            cgroup=_tight_cgroup(buffers * _PAGE),
            memlock=_memlock(),
        )
    )


def _memlock() -> str:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return f"{soft >> 10} KiB"


def _tight_cgroup(needed: int) -> str:
    """Name the memory cgroup of this process, or above, that has no room for so many bytes."""
    try:
        own = Path("/proc/self/cgroup").read_text().partition("::")[2].strip().lstrip("/")
    except OSError:
        return ""
    group = _CGROUPS / own
    while group != _CGROUPS:
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
        except OSError:
            limit, used = "max", 0
        if limit != "max" and int(limit) - used < needed:
            name = group.relative_to(_CGROUPS)
            return f"; memory.max of the cgroup {name} is {limit} bytes, and {used} are in use"
        group = group.parent
    return ""
