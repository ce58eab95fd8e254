"""Criteria of a run of the fuzzer."""

from __future__ import annotations

import json

from tests.fuzz.run import Outcome

GOOD = {
    "honest_sent": 10,
    "honest_received": 10,
    "honest_rounds": 2,
    "honest_rounds_ipv6": 1,
    "honest_detaches": 1,
    "slots_mutated": 1000,
    "dumps": 5,
    "trace_switches": 2,
    "trace_lines": 3,
}


def outcome(**changes: int) -> Outcome:
    return Outcome(f"progress {{}}\nresult {json.dumps(GOOD | changes)}\n")


def test_a_good_run_is_good() -> None:
    assert outcome().failures() == []
    assert outcome().shortfalls(3600, 1000) == []


def test_a_run_that_does_not_end_fails() -> None:
    assert Outcome("progress {}\n").failures() == ["the fuzzer did not end"]


def test_a_violation_reported_by_the_fuzzer_fails() -> None:
    said = Outcome(f"failure wrong byte\n{outcome().output}", ["BUG: at"])
    assert said.failures() == ["wrong byte", "BUG: at"]


def test_too_few_slots_fail() -> None:
    assert outcome().shortfalls(10, 1001) == ["1000 slots were mutated, fewer than 1001"]


def test_missing_events_depend_on_the_length_of_a_run() -> None:
    idle = outcome(honest_rounds=0, honest_detaches=0)
    assert idle.shortfalls(29, 0) == []
    assert idle.shortfalls(30, 0) == ["honest_rounds is 0"]
    assert idle.shortfalls(300, 0) == ["honest_rounds is 0", "honest_detaches is 0"]
