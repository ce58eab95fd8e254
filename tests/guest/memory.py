"""What the kernel's memory is used for."""

from __future__ import annotations

from pathlib import Path

from tests.guest.site import references, sh

_FIELDS = ("MemAvailable", "SUnreclaim", "VmallocUsed")
_SHRINK = ("TCP", "request_sock_TCP", "tw_sock_TCP", "sock_inode_cache", "filp", "dentry")


def settle() -> None:
    """Have the kernel give back what it only keeps in reserve."""
    sh("sync; echo 3 >/proc/sys/vm/drop_caches")
    for cache in _SHRINK:
        shrink = Path("/sys/kernel/slab", cache, "shrink")
        if shrink.exists():
            shrink.write_text("1\n")


def in_use() -> dict[str, int]:
    """The kernel's memory in KiB, its TCP sockets, and the references on the module."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split()[:2]
        if name.removesuffix(":") in _FIELDS:
            found[name.removesuffix(":")] = int(value)
    words = Path("/proc/net/sockstat").read_text().split()
    for name in ("alloc", "mem", "tw", "orphan"):
        found[f"TCP {name}"] = int(words[words.index(name, words.index("TCP:")) + 1])
    found["references"] = references()
    return found
