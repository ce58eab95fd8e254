"""The part of the kernel that a function belongs to: exactly one, and almost always a known one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stackmap_testbed.cost import kernel_parts
from stackmap_testbed.cost.kernel_parts import OTHER, PREFIXES, part_of

#: How much of a server's cost may be in functions that no rule knows.
UNKNOWN = 0.02

Rows = dict[str, list[int]]


def recorded() -> dict[str, Rows]:
    """What functions took, by kernel: each row has the four servers of the gate."""
    kernels: dict[str, Rows] = {}
    for line in Path(__file__).with_name("kernel_functions.txt").read_text().splitlines():
        if line.startswith("=="):
            rows = kernels.setdefault(line.removeprefix("== "), {})
        elif line and not line.startswith("#"):
            name, _, numbers = line.partition("  ")
            rows[name] = [int(number) for number in numbers.split()]
    return kernels


KERNELS = recorded()


def test_both_kernels_are_recorded() -> None:
    assert [name.split("-")[0] for name in KERNELS] == ["6.12.117+deb12", "6.1.0"]
    assert {len(row) for rows in KERNELS.values() for row in rows.values()} == {8}


@pytest.mark.parametrize("kernel", KERNELS)
def test_hardly_anything_is_unknown(kernel: str) -> None:
    rows = dict(KERNELS[kernel])
    costs, unknown = rows.pop("all the server's"), rows.pop("all the kernel's")
    for name, numbers in rows.items():
        if part_of(name) != OTHER:
            unknown = [left - number for left, number in zip(unknown, numbers, strict=True)]
    for cost, left in zip(costs, unknown, strict=True):
        assert 0 <= left / cost < UNKNOWN


def test_a_prefix_is_of_one_part() -> None:
    parts = Counter(word for words in PREFIXES.values() for word in words.split())
    assert [word for word, number in parts.items() if number > 1] == []


def test_each_prefix_changes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    for part, words in PREFIXES.items():
        for word in words.split():
            assert part_of(word) == part
            with monkeypatch.context() as without:
                without.delitem(kernel_parts._PARTS, word)
                assert part_of(word) != part, word


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("tcp_ack", "TCP"),
        ("__tcp_transmit_skb", "TCP"),
        ("tcp_gro_receive", "GRO"),
        ("sk_page_frag_refill", "allocation"),
        ("__pskb_pull_tail", "copying, checksums"),
        ("skb_release_data", "allocation"),
        ("skb_recv_done [virtio_net]", "driver"),
        ("tcp_bbr_something [tcp_bbr]", "TCP"),
        ("sched_clock_cpu", "timers, clock, RCU"),
        ("sched_tick", "scheduler, sleep"),
        ("net_rx_action", "interrupts, NAPI"),
        ("nothing_like_it", OTHER),
        ("unknown", OTHER),
        ("_", OTHER),
    ],
)
def test_the_longest_prefix_wins(function: str, part: str) -> None:
    assert part_of(function) == part
