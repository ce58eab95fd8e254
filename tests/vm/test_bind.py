"""``stackmap bind`` and ``unbind`` on a guest's NIC."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.guest import Guest
    from stackmap_testbed.lab import Lab
    from stackmap_testbed.process import Completed

#: A command takes seconds in an emulated guest, a minute on a kernel full of checks, and some tests
#: run five.
COMMAND_SECONDS = 300.0
pytestmark = pytest.mark.timeout(6 * COMMAND_SECONDS)

BUILT = Path(__file__).resolve().parents[2] / "build" / "kmod"


class Stackmap:
    """Runs the command in the guest, away from any module that might lie around."""

    def __init__(self, guest: Guest, module: Path) -> None:
        self._guest = guest
        self._module = module

    def __call__(self, *arguments: str) -> Completed:
        command = [sys.executable, "-m", "stackmap_cli.main", *arguments]
        return self._guest.run(command, timeout=COMMAND_SECONDS, check=False, cwd="/tmp")

    def bind(self, *arguments: str) -> Completed:
        return self("bind", "eth0", "--module", str(self._module), *arguments)

    def unbind(self) -> Completed:
        return self("unbind", "eth0")

    def qdisc(self) -> str:
        return self._guest.run("tc qdisc show dev eth0 root").stdout.split()[1]


@pytest.fixture
def stackmap(server: Guest, vm_lab: Lab) -> Iterator[Stackmap]:
    module = BUILT / vm_lab.release / "stackmap.ko"
    if not module.is_file():
        pytest.skip(f"no stackmap.ko is built for Linux {vm_lab.release}: run 'make kmod'")
    yield Stackmap(server, module)
    server.run("tc qdisc del dev eth0 root; rmmod stackmap", check=False)


def refusal(result: Completed) -> str:
    """The one sentence of a command that failed."""
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").strip()


def test_binding_and_unbinding_twice_change_nothing_more(stackmap: Stackmap) -> None:
    before = stackmap.qdisc()
    assert stackmap.bind().stdout == "eth0 is bound.\n"
    assert stackmap.qdisc() == "stackmap"
    assert stackmap.bind().stdout == "eth0 is bound already.\n"
    assert stackmap.unbind().stdout == "eth0 is no longer bound.\n"
    assert stackmap.qdisc() == before
    assert stackmap.unbind().stdout == "eth0 is not bound.\n"


def test_a_nic_that_does_not_exist(stackmap: Stackmap, server: Guest) -> None:
    there = sorted(server.run("ls /sys/class/net").stdout.split())
    assert f"name one of {', '.join(there)}" in refusal(stackmap("bind", "eth9"))


def test_a_nic_whose_queueing_was_configured(stackmap: Stackmap, server: Guest) -> None:
    server.run("tc qdisc replace dev eth0 root pfifo limit 100")
    assert "set its queueing to pfifo" in refusal(stackmap.bind())
    assert stackmap.qdisc() == "pfifo"


def test_a_nic_that_carries_the_default_route(stackmap: Stackmap, server: Guest) -> None:
    server.run("ip route add default dev eth0")
    try:
        assert "--force" in refusal(stackmap.bind())
        assert stackmap.bind("--force").returncode == 0
    finally:
        server.run("ip route del default dev eth0")


def test_a_nic_that_is_down(stackmap: Stackmap, server: Guest) -> None:
    server.run("ip link add sm0 type veth peer name sm1", check=False)
    if server.run("ip link show sm0", check=False).returncode != 0:
        pytest.skip("this kernel has no veth")
    try:
        assert "ip link set sm0 up" in refusal(stackmap("bind", "sm0"))
    finally:
        server.run("ip link del sm0")


def test_a_module_for_another_kernel(stackmap: Stackmap, vm_lab: Lab) -> None:
    others = [path for path in BUILT.glob("*/stackmap.ko") if path.parent.name != vm_lab.release]
    if not others:
        pytest.skip("the module is built for one kernel only")
    sentence = refusal(stackmap("bind", "eth0", "--module", str(others[0])))
    assert sentence.startswith("wrong kernel")


def test_without_the_right_to(stackmap: Stackmap, server: Guest) -> None:
    command = [sys.executable, "-m", "stackmap_cli.main", "bind", "eth0"]
    result = server.run(["setpriv", "--bounding-set", "-net_admin", *command], check=False)
    assert refusal(result).startswith("only root may bind")
