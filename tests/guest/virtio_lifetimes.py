"""Lifetimes on virtio NICs: ``python -m tests.guest.virtio_lifetimes SITUATION ROUNDS``.

The host changes the machine from outside: a line on the standard output asks
for it ("plug NAME" or "unplug NAME"), and a line on the standard input says that it was done.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from tests.guest.app import Nursery
from tests.guest.commands import sh
from tests.guest.lifetimes import play
from tests.guest.site import KernelLog, Site
from tests.guest.victim import MAX_FILES
from tests.waiting import eventually

#: The hardware addresses by which the NICs are known when they appear.
MACS = {"near": "02:79:00:00:00:01", "far": "02:79:00:00:00:02"}


def ask(request: str) -> None:
    """Have the machine changed."""
    print(request, flush=True)
    answer = sys.stdin.readline()
    assert answer == "done\n", answer


def find(mac: str) -> str | None:
    """The name of the NIC in this namespace that has an address."""
    for file in Path("/sys/class/net").glob("*/address"):
        if file.read_text().strip() == mac:
            return file.parent.name
    return None


class PluggedSite(Site):
    """Two virtio NICs on one hub of QEMU's."""

    def __init__(self) -> None:
        self._has_far = False

    def plug(self) -> None:
        """Plug in the near NIC, and at first the far one too."""
        self._plug("near", self.app)
        if not self._has_far:
            self._plug("far", self.peer)
            self._set_up(self.peer, self.peer_address)
            self._has_far = True

    def _plug(self, name: str, namespace: str) -> None:
        ask(f"plug {name}")
        eventually(lambda: find(MACS[name]) is not None, lambda: f"the {name} NIC does not appear")
        sh(f"ip link set {find(MACS[name])} down netns {namespace} name {self.nic}")

    def unplug(self) -> None:
        """Take the near NIC out of the machine, under whatever uses it."""
        ask("unplug near")
        eventually(lambda: not self.has_nic(self.app), lambda: "the NIC does not go away")

    def unplugged(self) -> None:
        """The far NIC stays."""


def main() -> None:
    """Play rounds of one situation."""
    situation, rounds = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    site, log = PluggedSite(), KernelLog()
    site.build()
    with Nursery() as nursery:
        for _ in range(rounds):
            play(site, nursery, log, situation, "unplug")
    ask("unplug near")
    ask("unplug far")
    site.remove()
    log.close()


if __name__ == "__main__":
    main()
