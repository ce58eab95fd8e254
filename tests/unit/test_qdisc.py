"""Which NICs may be bound, and for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from stackmap_cli.main import main
from stackmap_cli.qdisc import Nic, NicError, check_bindable, check_unused

GOOD = Nic(
    name="eth0",
    index=2,
    up=True,
    loopback=False,
    kind=None,
    master=None,
    below=(),
    qdisc="fq_codel",
    configured=False,
)


@pytest.mark.parametrize("kind", [None, "veth", "tun"])
def test_a_dedicated_nic_may_be_bound(kind: str | None) -> None:
    check_bindable(replace(GOOD, kind=kind))
    check_unused(GOOD, [])


@pytest.mark.parametrize(
    ("nic", "sentence"),
    [
        (replace(GOOD, loopback=True), "loopback"),
        (replace(GOOD, up=False), "ip link set eth0 up"),
        (replace(GOOD, master="br0"), "part of br0"),
        (replace(GOOD, qdisc="fq", configured=True), "set its queueing to fq"),
        (
            replace(GOOD, name="eth0.7", kind="vlan", below=("eth0",)),
            "eth0.7 is a VLAN and has no queue to a driver: bind eth0, which",
        ),
        (
            replace(GOOD, name="wg0", kind="wireguard"),
            "wg0 is a wireguard tunnel and has no queue to a driver: name the NIC",
        ),
        (
            replace(GOOD, name="bond0", kind="bond", below=("eth0", "eth1")),
            "bond0 is a bond of eth0 and eth1 and .* 'ip link set eth0 nomaster' and bind that",
        ),
        (
            replace(GOOD, name="br0", kind="bridge"),
            "br0 is a bridge and has no queue to a driver: name a NIC",
        ),
    ],
)
def test_devices_without_a_free_queue_are_refused(nic: Nic, sentence: str) -> None:
    with pytest.raises(NicError, match=sentence):
        check_bindable(nic)


def test_a_nic_that_the_machine_needs_is_refused_with_all_it_carries() -> None:
    uses = ["the default route (table 254)", "your SSH session from 192.0.2.7"]
    with pytest.raises(NicError) as refusal:
        check_unused(GOOD, uses)
    assert str(refusal.value) == (
        "eth0 carries the default route (table 254) and your SSH session from 192.0.2.7, "
        "and stackmap wants a NIC to itself: name another, or insist with --force"
    )


@pytest.mark.parametrize("whose", ["user", "group"])
@pytest.mark.parametrize("number", [0xFFFFFFFF, 1 << 32])
def test_a_number_that_nobody_has_is_one_sentence(whose: str, number: int) -> None:
    result = CliRunner().invoke(main, ["bind", "no-such-nic", f"--{whose}", str(number)])
    assert result.exit_code == 1
    assert (
        result.output == f"Error: no {whose} has the number {number}: 4294967294 is the largest\n"
    )
