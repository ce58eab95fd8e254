"""Ten thousand connections on a port: ``python -m tests.guest.ten_thousand COUNT TIMES``.

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
from tests.guest.memory import in_use, settle
from tests.guest.peer import Peer
from tests.guest.site import KernelLog, Site, references
from tests.guest.victim import MAX_FILES
from tests.waiting import eventually

#: Packets that may wait at the end of a veth pair.
BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")


def tell(moment: str, **more: object) -> None:
    """Say how much memory is in use."""
    print(json.dumps({"moment": moment, **in_use(), **more}), flush=True)


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
            round.start()
            tell("height", binding=site.binding_references(), seconds=time.monotonic() - begin)
            close_sockets_first(round)
    eventually(lambda: references() == idle, lambda: f"{references()} references, {idle} before")
    site.remove()
    assert log.complaints() == []


def main() -> None:
    """Do it several times, each in a process of its own, and look at what is left."""
    count, times = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    # All speak at once.  What a full queue of the wire drops comes back with TCP's timers, again
    # and again too many at a time, and the unluckiest take minutes.
    BACKLOG.write_text(f"{10 * count}\n")
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
