"""Compare the cost of a request on rings and on epoll with the figures that were kept.

The kept figures are in the repository (``baseline.json`` beside this file), for each series of
kernels, with what they depend on: another release of the kernel, QEMU, Python, cffi or the compiler
gives other figures, of which only the ratio of rings to epoll says something about a change of this
project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from stackmap_testbed.lab.errors import LabError

KEPT = Path(__file__).with_name("baseline.json")
#: Servers on rings, each with the one on epoll that it is compared with.
PAIRS = {"C rings": "C epoll", "bare rings": "bare epoll"}
#: Servers of which requests come in bursts, and their number of connections.
SATURATED = ("C rings in bursts", "C epoll in bursts", "256")
#: The pairs that are held to the kept figures, with a number of connections.  Others are kept for
#: information: with one connection figures have two modes, with 64 batches settle differently.
GATED = (
    *((rings, epoll, "16") for rings, epoll in PAIRS.items()),
    SATURATED,
)
#: Events that a saturated server on rings shares among requests, and the part of epoll's that it
#: may have.
SHARED_EVENTS = ("doorbells", "interrupts")
SHARED_AT_MOST = 0.1
#: By how much the cost on rings may rise.
TOLERANCE = 0.03
#: Repeats that differ by more decide nothing.
MAX_SPREAD = 0.05

Record = dict[str, Any]


def spread(costs: Sequence[float]) -> float:
    """How far costs are apart, as a part of their median."""
    return (max(costs) - min(costs)) / median(costs)


def series(measured: Record) -> str:
    """The kernel's series, for instance ``6.12``."""
    return ".".join(measured["environment"]["kernel"].split(".")[:2])


def read_kept(wanted: str, path: Path = KEPT) -> Record:
    """The kept figures of a series of kernels.

    Raises:
        LabError: there are none, or they cannot be understood.
    """
    try:
        kept: Record = json.loads(path.read_text())[wanted]
        dict(kept["environment"])
        for rings, epoll, connections in GATED:
            int(_cost(kept, rings, connections)), int(_cost(kept, epoll, connections))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} does not hold kept figures of Linux {wanted} ({error!r}): record them with "
            "`make bench-gate UPDATE=1`"
        ) from error
    return kept


def keep(measured: Record, path: Path = KEPT) -> None:
    """Replace the kept figures of this series of kernels."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, series(measured): measured}, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a change may be merged, and why."""

    passed: bool
    sentences: tuple[str, ...]


def faults(measured: Record) -> list[str]:
    """Return faults of figures by themselves: they do not repeat, or epoll does as well."""
    failures = []
    for rings, epoll, connections in GATED:
        for name in (rings, epoll):
            apart = measured["servers"][name][connections]["spread"]
            if apart >= MAX_SPREAD:
                failures.append(
                    f"{name}, {connections} connections: the repeats differ by {apart:.1%}: "
                    f"with {MAX_SPREAD:.0%} or more they decide nothing, so find out what is not "
                    "repeatable"
                )
        costs = [_cost(measured, name, connections) for name in (rings, epoll)]
        if costs[0] >= costs[1]:
            failures.append(
                f"{rings}, {connections} connections: a request costs {costs[0]} instructions, "
                f"and {costs[1]} on epoll: rings must cost less"
            )
    rings, epoll, connections = SATURATED
    for event in SHARED_EVENTS:
        ours, theirs = (
            measured["servers"][name][connections]["events"][event] for name in (rings, epoll)
        )
        if ours > SHARED_AT_MOST * theirs:
            failures.append(
                f"{rings}, {connections} connections: {ours:.2f} {event} per request, and "
                f"{theirs:.2f} on epoll: rings must have at most {SHARED_AT_MOST:.0%} of these"
            )
    return failures


def judge(measured: Record, kept: Record) -> Verdict:
    """Compare what was measured with what was kept.

    What can be said about the measured figures alone must hold anywhere.  Where the kept ones were
    not measured, another kernel or compiler changes what a request costs, but on epoll as well: the
    ratio of the two is compared instead.
    """
    failures = faults(measured)
    differing = _differences(measured["environment"], kept["environment"])
    notes = []
    gained = False
    for rings, epoll, connections in GATED:
        now, before = (_cost(each, rings, connections) for each in (measured, kept))
        compared = f"{now} instructions, {before} kept"
        if differing:
            now /= _cost(measured, epoll, connections)
            before /= _cost(kept, epoll, connections)
            compared = f"{now:.1%} of what epoll costs, {before:.1%} kept"
        rise = now / before - 1
        note = f"{rings}, {connections} connections: {compared}: {rise:+.1%}"
        if now > before * (1 + TOLERANCE):
            failures.append(
                f"{note}, and more than {TOLERANCE:+.0%} fails; if the rise is worth it, record it "
                "with `make bench-gate UPDATE=1` and say why in the commit"
            )
        else:
            notes.append(note)
        gained = gained or rise < -TOLERANCE
    if differing:
        notes.append(
            f"the kept figures themselves were measured elsewhere: {differing}; record figures for "
            "here with `make bench-gate UPDATE=1`, from a commit that is known good"
        )
    elif gained:
        notes.append("keep what was gained with `make bench-gate UPDATE=1`")
    return Verdict(not failures, (*failures, *notes))


def _cost(figures: Record, name: str, connections: str) -> Any:
    return figures["servers"][name][connections]["instructions"]


def _differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {there.get(name)} instead of {here.get(name)}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    )
