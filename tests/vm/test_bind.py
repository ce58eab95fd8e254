"""``stackmap bind`` and ``unbind`` on a guest's NIC."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.lab.guest import Guest
    from stackmap_testbed.lab.lab import Lab
    from stackmap_testbed.lab.process import Completed, GuestProcess

#: A command takes seconds in an emulated guest, a minute on a kernel full of checks, and some tests
#: run five.
COMMAND_SECONDS = 300.0
pytestmark = [pytest.mark.first_kernel, pytest.mark.timeout(6 * COMMAND_SECONDS)]

BUILT = Path(__file__).resolve().parents[2] / "build" / "kmod"


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Stackmap:
    """The command in the guest, loaded once, away from any module that might lie around."""

    def __init__(self, guest: Guest, module: Path) -> None:
        self._guest = guest
        self.module = module
        program = Path(__file__).with_name("command_server.py")
        self._process: GuestProcess = guest.popen(
            [sys.executable, str(program)], stdin=True, cwd="/tmp"
        )
        self._commands = 0

    def __call__(self, *arguments: str) -> Result:
        self._process.send(json.dumps(arguments).encode() + b"\n")
        self._commands += 1
        end = self._process.wait_for_output(rf"^{self._commands} (.*)\n", COMMAND_SECONDS)
        return Result(**json.loads(end[1]))

    def bind(self, *arguments: str) -> Result:
        return self("bind", "eth0", "--module", str(self.module), *arguments)

    def unbind(self) -> Result:
        return self("unbind", "eth0")

    def qdisc(self) -> str:
        return self._guest.run("tc qdisc show dev eth0 root").stdout.split()[1]

    def close(self) -> None:
        self._process.close_input()
        self._process.wait(COMMAND_SECONDS)


@pytest.fixture(scope="module")
def running(server: Guest, vm_lab: Lab) -> Iterator[Stackmap]:
    module = BUILT / vm_lab.release / "stackmap.ko"
    if not module.is_file():
        pytest.skip(f"no stackmap.ko is built for Linux {vm_lab.release}: run 'make kmod'")
    command = Stackmap(server, module)
    yield command
    command.close()


@pytest.fixture
def stackmap(running: Stackmap, server: Guest) -> Iterator[Stackmap]:
    yield running
    server.run("tc qdisc del dev eth0 root; rmmod stackmap", check=False)


def refusal(result: Result | Completed) -> str:
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


def test_a_nic_by_an_alternative_name(stackmap: Stackmap, server: Guest) -> None:
    name = "a-name-of-more-than-15-characters"
    server.run(f"ip link property add dev eth0 altname {name}")
    try:
        bound = stackmap("bind", name, "--module", str(stackmap.module))
        assert bound.stdout == "eth0 is bound.\n"
        program = f"from stackmap import open_port; open_port('stackmap', '{name}').close()"
        server.run([sys.executable, "-c", program], timeout=COMMAND_SECONDS)
        assert stackmap("unbind", name).stdout == "eth0 is no longer bound.\n"
    finally:
        server.run(f"ip link property del dev eth0 altname {name}")


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


@dataclass(frozen=True)
class Standing:
    """Something that stands on eth0, or on the pair of sm0 and sm1."""

    name: str
    #: Shell commands that set it up, and remove it.
    set_up: str
    remove: str
    #: The NIC that may not be bound then, and the refusal's text.
    nic: str
    sentence: str


def on_eth0(name: str, kind: str, link: str = "link eth0") -> Standing:
    """The default route leaves by a device of this kind on eth0."""
    return Standing(
        f"{kind} {link}".strip(),
        f"ip link add {link} name {name} type {kind}; ip link set {name} up;"
        f" ip route add default dev {name}",
        f"ip link del {name}",
        "eth0",
        f"eth0 carries the default route (through {name}, table 254)",
    )


def in_a_master(name: str, kind: str) -> Standing:
    """It leaves by a device that a VLAN of eth0 is a part of."""
    return Standing(
        f"vlan in {kind}",
        f"ip link add link eth0 name eth0.7 type vlan id 7; ip link add {name} type {kind};"
        f" ip link set eth0.7 down; ip link set eth0.7 master {name};"
        f" ip link set {name} up; ip route add default dev {name}",
        f"ip link del {name}; ip link del eth0.7",
        "eth0",
        f"eth0 carries the default route (through {name} and eth0.7, table 254)",
    )


def with_parts(kind: str, article: str) -> list[Standing]:
    """A bridge, bond or team, and its part: both are refused."""
    set_up = (
        f"ip link add sm0 type veth peer name sm1; ip link add {kind}0 type {kind};"
        f" ip link set sm0 master {kind}0; ip link set sm0 up"
    )
    remove = f"ip link del sm0; ip link del {kind}0"
    return [
        Standing(f"{kind}'s part", set_up, remove, "sm0", f"sm0 is busy as a part of {kind}0"),
        Standing(kind, set_up, remove, f"{kind}0", f"{kind}0 is {article} of sm0 and has no queue"),
    ]


def routed(name: str, routes: str, sentence: str, remove: str = "") -> Standing:
    """Routes, each with its end to add or delete it with."""
    commands = [route.strip() for route in routes.split(";")]
    add = "; ".join(f"ip {c}" for c in commands)
    undo = "; ".join(f"ip {c.replace(' add ', ' del ')}" for c in reversed(commands))
    return Standing(name, add, f"{undo}; {remove}", "eth0", f"eth0 carries {sentence}")


WIREGUARD = (
    "from pyroute2 import WireGuard; WireGuard().set('wg0', private_key='A' * 43 + '=',"
    " peer={'public_key': 'B' * 42 + 'A=', 'endpoint_addr': '10.77.0.9', 'endpoint_port': 51820})"
)
STANDING = [
    on_eth0("eth0.7", "vlan id 7"),
    on_eth0("mv0", "macvlan"),
    on_eth0("mvt0", "macvtap"),
    on_eth0("ipvl0", "ipvlan"),
    on_eth0("vx0", "vxlan id 7 dstport 4789 remote 10.77.0.9 dev eth0", link=""),
    on_eth0("vx0", "vxlan id 7 dstport 4789 remote 10.77.0.9", link=""),
    on_eth0("gre7", "gre remote 10.77.0.9 local 10.77.0.1", link=""),
    on_eth0("ipip7", "ipip remote 10.77.0.9", link=""),
    on_eth0("ip6t7", "ip6tnl mode any remote fd77::9", link=""),
    in_a_master("br0", "bridge"),
    in_a_master("bond7", "bond"),
    in_a_master("team0", "team"),
    *with_parts("bridge", "a bridge"),
    *with_parts("bond", "a bond"),
    Standing(
        "wireguard",
        f'ip link add wg0 type wireguard; "{sys.executable}" -c "{WIREGUARD}";'
        " ip link set wg0 up; ip route add default dev wg0",
        "ip link del wg0",
        "eth0",
        "eth0 carries the default route (through wg0, table 254)",
    ),
    Standing(
        "vlan itself",
        "ip link add link eth0 name eth0.7 type vlan id 7",
        "ip link del eth0.7",
        "eth0.7",
        "eth0.7 is a VLAN and has no queue to a driver: bind eth0, which its packets leave by",
    ),
    Standing(
        "vrf",
        "ip link add vrf0 type vrf table 10; ip link add link eth0 name eth0.7 type vlan id 7;"
        " ip link set eth0.7 master vrf0; ip link set vrf0 up; ip link set eth0.7 up;"
        " ip route add default dev eth0.7 table 10",
        "ip link del eth0.7; ip link del vrf0",
        "eth0",
        "eth0 carries the default route (through eth0.7, table 10)",
    ),
    routed(
        "halves",
        "route add 0.0.0.0/1 dev eth0; route add 128.0.0.0/1 dev eth0",
        "the route to 0.0.0.0/1 (table 254) and the route to 128.0.0.0/1 (table 254)",
    ),
    routed("IPv6", "-6 route add default dev eth0", "the IPv6 default route (table 254)"),
    routed("IPv6 half", "-6 route add 8000::/1 dev eth0", "the route to 8000::/1 (table 254)"),
    routed(
        "another table",
        "rule add from 10.77.0.1 lookup 1000; route add default dev eth0 table 1000",
        "the default route (table 1000)",
    ),
    routed(
        "multipath",
        "link add sm0 type dummy; link set sm0 up;"
        " route add default nexthop dev sm0 nexthop dev eth0",
        "the default route (table 254)",
        "ip link del sm0",
    ),
    routed(
        "nexthop object",
        "nexthop add id 7 dev eth0; nexthop add id 8 group 7; route add default nhid 8",
        "the default route (table 254)",
        "ip nexthop flush",
    ),
]


@pytest.mark.parametrize("standing", STANDING, ids=lambda standing: standing.name)
def test_devices_on_top_of_a_nic(stackmap: Stackmap, server: Guest, standing: Standing) -> None:
    check_refused(stackmap, server, standing)


def test_a_nexthop_object_behind_a_route_that_does_not_name_its_nics(
    stackmap: Stackmap, server: Guest
) -> None:
    mode = "/proc/sys/net/ipv4/nexthop_compat_mode"
    server.run(f"echo 0 > {mode}")
    try:
        check_refused(stackmap, server, STANDING[-1])
    finally:
        server.run(f"echo 1 > {mode}")


def check_refused(stackmap: Stackmap, server: Guest, standing: Standing) -> None:
    try:
        server.run(f"set -e; {standing.set_up}", timeout=COMMAND_SECONDS)
        sentence = refusal(stackmap("bind", standing.nic, "--module", "/nowhere/stackmap.ko"))
    finally:
        server.run(standing.remove, check=False)
    assert sentence.startswith(standing.sentence)


def test_unused_routes_do_not_prevent_binding(stackmap: Stackmap, server: Guest) -> None:
    """A table that no rule names, a network of one's own, multicast, a veth's other end."""
    server.run(
        "set -e; ip link add sm0 type veth peer name sm1; ip link set sm0 up; ip link set sm1 up;"
        " ip route add default dev sm1; ip route add default dev sm0 table 1000;"
        " ip route add 10.0.0.0/8 dev sm0; ip route add 224.0.0.0/4 dev sm0;"
        " ip -6 route add fc00::/7 dev sm0"
    )
    try:
        sentence = refusal(stackmap("bind", "sm0", "--module", "/nowhere/stackmap.ko"))
    finally:
        server.run("ip link del sm0", check=False)
    assert sentence.startswith("/nowhere/stackmap.ko does not exist")


@pytest.mark.parametrize("through", ["eth0", "eth0.7"])
def test_a_nic_that_carries_the_callers_ssh_session(
    stackmap: Stackmap, server: Guest, through: str
) -> None:
    """sudo clears the environment: the shell that it was started from has the variable."""
    bind = [sys.executable, "-m", "stackmap_cli.main", "bind", "eth0"]
    inner = shlex.join(["env", "-i", *bind]) + "; exit $?"
    outer = ["env", "SSH_CONNECTION=192.0.2.7 5 192.0.2.1 22", "sh", "-c", inner]
    vlan = "ip link add link eth0 name eth0.7 type vlan id 7; ip link set eth0.7 up"
    server.run(f"{vlan}; ip addr add 192.0.2.1/24 dev {through}")
    try:
        way = "" if through == "eth0" else " (through eth0.7)"
        sentence = refusal(server.run(outer, timeout=COMMAND_SECONDS, check=False))
        assert sentence.startswith(f"eth0 carries your SSH session from 192.0.2.7{way}, and")
    finally:
        server.run(f"ip addr del 192.0.2.1/24 dev {through}; ip link del eth0.7", check=False)


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
