"""The kernel's memory by use."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guest.commands import sh
from tests.guest.site import references

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")
_FIELDS = ("MemAvailable", "SUnreclaim", "VmallocUsed")
_SHRINK = ("TCP", "request_sock_TCP", "tw_sock_TCP", "sock_inode_cache", "filp", "dentry")


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A memory cgroup of at most so many bytes, for as long as the block lasts."""
    sh(f"""
        mountpoint -q {_CGROUPS} || mount -t cgroup2 cgroup2 {_CGROUPS}
        echo +memory >{_CGROUPS}/cgroup.subtree_control
    """)
    cgroup = _CGROUPS / "stackmap-test"
    cgroup.mkdir()
    (cgroup / "memory.max").write_text(str(limit))
    yield cgroup
    cgroup.rmdir()


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
