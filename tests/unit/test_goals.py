"""The table of the goals: which servers it measures, and what it makes of their figures."""

from __future__ import annotations

from typing import Any

import pytest

from stackmap_testbed.cost.goals import GOALS, Figures, Goal, servers, table
from stackmap_testbed.cost.models import SERVERS


def figures(ours: int, theirs: int, spread: float = 0.0) -> Figures:
    """The same figures for all servers on rings, and for all others."""
    found: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    for goal in GOALS:
        for name, cost in ((goal.rings, ours), (goal.sockets, theirs)):
            sizes = found[goal.bursts].setdefault(name, {})
            sizes.setdefault(str(goal.size), {})[str(goal.connections)] = {
                "instructions": cost,
                "spread": spread,
                "events": {"doorbells": cost / 10, "interrupts": cost / 20},
            }
    return found


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.what)
def test_a_goal_compares_rings_with_sockets(goal: Goal) -> None:
    assert SERVERS[goal.rings].rings
    assert not SERVERS[goal.sockets].rings


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.what)
def test_a_ratio_is_ours_by_theirs(goal: Goal) -> None:
    assert goal.ratio(figures(300, 400, 0.01)) == (0.75, 0.0 if goal.event else 0.02)


def test_only_what_is_compared_is_measured() -> None:
    wanted = servers(goal for goal in GOALS if goal.bursts)
    assert sorted(wanted) == ["C epoll", "C epoll tuned", "C rings"]
    assert all(server.connections == [256] for server in wanted.values())
    wanted = servers(goal for goal in GOALS if not goal.bursts)
    assert (wanted["C rings"].sizes, wanted["C rings"].connections) == ([64], [1])
    assert wanted["memcached loop"].sizes == [64, 1024, 16384]


def test_an_event_that_a_driver_does_not_show_has_no_ratio() -> None:
    found = figures(300, 400)
    for name in ("C rings", "C epoll"):
        del found[True][name]["64"]["256"]["events"]["doorbells"]
    assert table({"6.12": found})[7] == "| doorbells, saturated | - | 0.10 |"


def test_the_table_has_a_column_for_each_kernel() -> None:
    lines = table({"6.12": figures(300, 400, 0.01), "6.1": figures(200, 400)})
    assert lines[0] == "| | Linux 6.12 | Linux 6.1 | goal |"
    assert lines[2] == "| echo in C, saturated | 0.75 ± 0.01 | 0.50 ± 0.00 | 0.65 |"
    assert lines[7] == "| doorbells, saturated | 0.75 | 0.50 | 0.10 |"
    assert len(lines) == 2 + len(GOALS)
    assert {line.count("|") for line in lines} == {5}
