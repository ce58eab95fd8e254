"""Compare the cost of a request on rings and on epoll with the figure that was kept.

The kept figure is in the repository (``baseline.json`` beside this file), with what it depends
on: another release of the kernel, QEMU, Python, cffi or the compiler gives other figures, of which
only the ratio of rings to epoll says something about a change of this project.
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
#: By how much the cost on rings may rise.
TOLERANCE = 0.03
#: Rounds that differ by more decide nothing.
MAX_SPREAD = 0.02

Record = dict[str, Any]


def spread(rounds: Sequence[float]) -> float:
    """How far the rounds are apart, as a part of their median."""
    return (max(rounds) - min(rounds)) / median(rounds)


def record(
    rings: Sequence[float], epoll: Sequence[float], environment: Mapping[str, str]
) -> Record:
    """The figures of one run of the gate, from the instructions per request of its rounds."""
    return {
        "ring": round(median(rings)),
        "epoll": round(median(epoll)),
        "spread": round(max(spread(rings), spread(epoll)), 4),
        "environment": dict(environment),
    }


def read_kept(path: Path = KEPT) -> Record:
    """The kept figures.

    Raises:
        LabError: there are none, or they cannot be understood.
    """
    try:
        kept: Record = json.loads(path.read_text())
        int(kept["ring"]), int(kept["epoll"]), dict(kept["environment"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} does not hold kept figures ({error}): record them with "
            "`make bench-gate UPDATE=1`"
        ) from error
    return kept


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a change may be merged, and why."""

    passed: bool
    sentences: tuple[str, ...]


def faults(measured: Record) -> list[str]:
    """Return faults of figures by themselves: they do not repeat, or epoll costs no more."""
    failures = []
    if measured["spread"] >= MAX_SPREAD:
        failures.append(
            f"the rounds differ by {measured['spread']:.1%}: with {MAX_SPREAD:.0%} or more "
            "they decide nothing, so find out what is not repeatable"
        )
    if measured["ring"] >= measured["epoll"]:
        failures.append(
            f"a request costs {measured['ring']} instructions on rings and "
            f"{measured['epoll']} on epoll: rings must cost less"
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
    if differing:
        now, before = (costs["ring"] / costs["epoll"] for costs in (measured, kept))
        compared = f"rings cost {now:.1%} of what epoll does, {before:.1%} kept"
    else:
        now, before = measured["ring"], kept["ring"]
        compared = f"{now} instructions per request on rings, {before} kept"
    rise = now / before - 1
    note = f"{compared}: {rise:+.1%}"
    if differing:
        note += f" (the kept figures themselves were measured elsewhere: {differing})"
    if now > before * (1 + TOLERANCE):
        failures.append(
            f"{note}, and more than {TOLERANCE:+.0%} fails; if the rise is worth "
            "it, record it with `make bench-gate UPDATE=1` and say why in the commit"
        )
        return Verdict(False, tuple(failures))
    if differing:
        note += (
            "; record figures for here with `make bench-gate UPDATE=1`, from a commit that is "
            "known good"
        )
    elif rise < -TOLERANCE:
        note += "; keep what was gained with `make bench-gate UPDATE=1`"
    return Verdict(not failures, (*failures, note))


def _differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {there.get(name)} instead of {here.get(name)}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    )
