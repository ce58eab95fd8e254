"""Criteria of a soak."""

from __future__ import annotations

from typing import Any

import pytest

from tests.soak import growth, shortfalls

MILLION = 1_000_000
APPLICATION: dict[str, object] = {
    "MemAvailable": 1_000_000,
    "SUnreclaim": 40_000,
    "VmallocUsed": 10_000,
}
TOTAL = {"messages": MILLION, "killed": 1, "retransmitted": {"app": 10, "peer": 20}}


def test_a_good_run_is_good() -> None:
    assert shortfalls([APPLICATION, APPLICATION], TOTAL, MILLION) == []
    assert growth([APPLICATION, APPLICATION]) == []


def test_a_short_run_may_miss_what_is_rare() -> None:
    total = {"messages": 10, "killed": 0, "retransmitted": {"app": 0, "peer": 0}}
    assert shortfalls([APPLICATION], total, 10) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": MILLION - 1}, "999999 messages of 1000000"),
        ({"killed": 0}, "no application was killed"),
        ({"retransmitted": {"app": 0, "peer": 20}}, "sent again by app"),
        ({"retransmitted": {}}, "sent again by nobody"),
    ],
)
def test_a_long_run_reports_missing_events(change: dict[str, Any], said: str) -> None:
    (found,) = shortfalls([APPLICATION, APPLICATION], TOTAL | change, MILLION)
    assert said in found


def test_growth_needs_two_applications() -> None:
    (found,) = shortfalls([APPLICATION], TOTAL, MILLION)
    assert "two applications" in found


def test_grown_memory_is_reported() -> None:
    (found,) = growth([APPLICATION, APPLICATION | {"SUnreclaim": 50_000}])
    assert "SUnreclaim has changed by 10000 KiB" in found
