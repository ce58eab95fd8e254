"""Ten thousand connections on one port, several times: ``python -m tests.guest.crowd COUNT TIMES``.

Each time they are made, attached, spoken over in both directions and closed, in namespaces that
are made for it and deleted afterwards.  Prints the kernel's memory before, at the height of and
after each time, as lines of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from tests.guest.app import Nursery
from tests.guest.lifetimes import Round, close_sockets_first
from tests.guest.peer import Peer
from tests.guest.site import KernelLog, Site, eventually, references, sh
from tests.guest.victim import MAX_FILES

_SHRINK = ("TCP", "request_sock_TCP", "tw_sock_TCP", "sock_inode_cache", "filp", "dentry")


def settle() -> None:
    """Give back what is only kept in reserve."""
    sh("sync; echo 3 >/proc/sys/vm/drop_caches")
    for cache in _SHRINK:
        shrink = Path("/sys/kernel/slab", cache, "shrink")
        if shrink.exists():
            shrink.write_text("1\n")


def memory() -> dict[str, int]:
    """What the kernel's memory is used for, in KiB, and what it has for TCP."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split()[:2]
        if name in {"MemAvailable:", "SUnreclaim:", "VmallocUsed:", "Percpu:"}:
            found[name[:-1]] = int(value)
    words = Path("/proc/net/sockstat").read_text().split()
    for name in ("alloc", "mem", "tw", "orphan"):
        found[f"TCP {name}"] = int(words[words.index(name, words.index("TCP:")) + 1])
    found["references"] = references()
    return found


def tell(moment: str, **more: object) -> None:
    """Say how much memory is in use."""
    print(json.dumps({"moment": moment, **memory(), **more}), flush=True)


def once(nursery: Nursery, log: KernelLog, count: int) -> None:
    """Make, attach, exchange, close."""
    site = Site()
    site.build()
    begin = time.monotonic()
    with nursery.bear() as app:
        idle = references()
        number = app.order("open", namespace=site.app, nic=site.nic, address=site.address)
        with Peer(site.peer, (site.address, number), count) as peer:
            round = Round(site, app, peer, "thousand", idle)
            round.start(0)
            tell("height", seconds=time.monotonic() - begin, connections=count)
            close_sockets_first(round)
    eventually(lambda: references() == idle, lambda: f"{references()} references, {idle} before")
    site.remove()
    assert log.complaints() == []


def main() -> None:
    """Do it several times, each in a process of its own, and look at what is left."""
    count, times = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    for _ in range(times):
        settle()
        tell("before")
        child = os.fork()
        if not child:
            with Nursery() as nursery:
                once(nursery, KernelLog(), count)
            os._exit(0)
        _pid, status = os.waitpid(child, 0)
        if status:
            sys.exit(1)
        eventually(lambda: references() == 0, lambda: f"{references()} references are left")
        settle()
        tell("after")


if __name__ == "__main__":
    main()
