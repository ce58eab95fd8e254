"""What a request costs on rings and on epoll, held to what it cost when a figure was kept.

The kept figure is in the repository (``bench-gate.json`` beside this file), with what it depends
on: another release of the kernel, QEMU, Python, cffi or the compiler gives other figures, and they
say nothing about a change of this project.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cffi

from .errors import LabError

KEPT = Path(__file__).with_name("bench-gate.json")
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


def environment(release: str) -> dict[str, str]:
    """What the figures depend on besides this project, in a guest with this kernel release.

    Raises:
        LabError: a program cannot be asked for its version.
    """
    qemu = _first_line(["qemu-system-x86_64", "--version"]).removeprefix("QEMU emulator version ")
    return {
        "kernel": release,
        "qemu": qemu.split()[0],
        "gcc": _first_line(["gcc", "-dumpfullversion"]),
        "python": platform.python_version(),
        "cffi": cffi.__version__,
    }


def _first_line(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise LabError(f"'{' '.join(command)}' does not say its version: {error}") from error


def read_kept(path: Path = KEPT) -> Record:
    """The kept figures.

    Raises:
        LabError: there are none, or they cannot be understood.
    """
    try:
        kept: Record = json.loads(path.read_text())
        int(kept["ring"]), dict(kept["environment"])
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
    """What is wrong with figures whatever was kept: they do not repeat, or epoll costs no more."""
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

    What can be said about the measured figures alone must hold anywhere; the kept figure is only
    asked where it was measured.
    """
    failures = faults(measured)
    differing = _differences(measured["environment"], kept["environment"])
    if differing:
        note = (
            f"not compared with the kept figure, which was measured elsewhere ({differing}): "
            "record one for here with `make bench-gate UPDATE=1`, from a commit that is known good"
        )
        return Verdict(not failures, (*failures, note))
    rise = measured["ring"] / kept["ring"] - 1
    compared = f"{measured['ring']} instructions per request on rings, {kept['ring']} kept"
    if measured["ring"] > kept["ring"] * (1 + TOLERANCE):
        failures.append(
            f"{compared}: {rise:+.1%}, and more than {TOLERANCE:+.0%} fails; if the rise is worth "
            "it, record it with `make bench-gate UPDATE=1` and say why in the commit"
        )
        return Verdict(False, tuple(failures))
    note = f"{compared}: {rise:+.1%}"
    if rise < -TOLERANCE:
        note += "; keep what was gained with `make bench-gate UPDATE=1`"
    return Verdict(not failures, (*failures, note))


def _differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {there.get(name)} instead of {here.get(name)}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    )
