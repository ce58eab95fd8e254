"""Which NICs may be bound, and for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from stackmap_cli.link import Nic, NicError, check_bindable
from stackmap_cli.main import main

GOOD = Nic(
    name="eth0",
    index=2,
    up=True,
    loopback=False,
    master=None,
    qdisc="fq_codel",
    configured=False,
    carries_default_route=False,
)


def test_a_dedicated_nic_may_be_bound() -> None:
    check_bindable(GOOD, force=False)


@pytest.mark.parametrize(
    ("nic", "sentence"),
    [
        (replace(GOOD, loopback=True), "loopback"),
        (replace(GOOD, up=False), "ip link set eth0 up"),
        (replace(GOOD, master="br0"), "part of br0"),
        (replace(GOOD, qdisc="fq", configured=True), "set its queueing to fq"),
        (replace(GOOD, carries_default_route=True), "--force"),
    ],
)
def test_a_nic_in_use_may_not(nic: Nic, sentence: str) -> None:
    with pytest.raises(NicError, match=sentence):
        check_bindable(nic, force=False)


def test_force_is_for_the_default_route_only() -> None:
    check_bindable(replace(GOOD, carries_default_route=True), force=True)
    with pytest.raises(NicError):
        check_bindable(replace(GOOD, master="bond0"), force=True)


@pytest.mark.parametrize("whose", ["user", "group"])
@pytest.mark.parametrize("number", [0xFFFFFFFF, 1 << 32])
def test_a_number_that_nobody_has_is_one_sentence(whose: str, number: int) -> None:
    result = CliRunner().invoke(main, ["bind", "no-such-nic", f"--{whose}", str(number)])
    assert result.exit_code == 1
    assert (
        result.output == f"Error: no {whose} has the number {number}: 4294967294 is the largest\n"
    )
