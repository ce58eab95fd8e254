"""A virtio NIC is taken out of the running machine, under ports that use it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.guest.lifetimes import SITUATIONS
from tests.guest.virtio_lifetimes import MACS
from tests.waiting import PATIENCE, eventually

if TYPE_CHECKING:
    from stackmap_testbed.lab.guest import Guest
    from stackmap_testbed.lab.process import GuestProcess

ROUNDS = int(os.environ.get("STACKMAP_ROUNDS", "0"))
#: Without a number of rounds, one round of the situations in which TCP has something to lose.
SHORT = ("in_flight", "acks_withheld")


class Slots:
    """The slots of the guest's machine that the NICs go into; both are on one wire."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._taken: list[str] = []

    def plug(self, name: str) -> None:
        self._guest.monitor("netdev_add", type="hubport", id=f"hub-{name}", hubid=79)
        self._guest.monitor(
            "device_add",
            driver="virtio-net-pci", id=name, netdev=f"hub-{name}", mac=MACS[name], romfile="",
        )  # fmt: skip
        self._taken.append(name)

    def unplug(self, name: str) -> None:
        """Ask the guest to let go of the NIC; it is gone some time later."""
        self._guest.monitor("device_del", id=name)
        eventually(
            lambda: all(child["name"] != name for child in self._devices()),
            lambda: f"the guest does not let go of the {name} NIC",
            patience=PATIENCE,
        )
        self._guest.monitor("netdev_del", id=f"hub-{name}")
        self._taken.remove(name)

    def clear(self) -> None:
        """Unplug what a program that failed has left."""
        for name in tuple(self._taken):
            self.unplug(name)

    def _devices(self) -> list[dict[str, str]]:
        children: list[dict[str, str]] = self._guest.monitor("qom-list", path="/machine/peripheral")
        return children


def serve(slots: Slots, process: GuestProcess) -> None:
    """Do what the program inside asks for, until it ends."""
    seen: dict[str, int] = {}
    text = ""
    while not process.finished:
        text += process.next_output(seen, 1.0)["stdout"].decode()
        while "\n" in text:
            asked, _, text = text.partition("\n")
            verb, name = asked.split()
            getattr(slots, verb)(name)
            process.send(b"done\n")


@pytest.mark.concurrent
@pytest.mark.usefixtures("module")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("situation", [name for name in SITUATIONS if ROUNDS or name in SHORT])
def test_unplug(server: Guest, situation: str) -> None:
    process = server.popen(
        [
            sys.executable,
            "-B",
            "-m",
            "tests.guest.virtio_lifetimes",
            situation,
            str(max(ROUNDS, 1)),
        ],
        stdin=True,
    )
    slots = Slots(server)
    try:
        serve(slots, process)
    finally:
        slots.clear()
    assert process.wait(60) == 0, process.output()
