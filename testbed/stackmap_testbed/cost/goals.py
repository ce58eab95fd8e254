"""Rings compared with sockets, beside the goals: one table.

``python -m stackmap_testbed.cost.goals --kernels 6.12 6.1 --out out/bench-goals.json``

Measures as :mod:`stackmap_testbed.cost.models` does, with requests one by one and in bursts, prints
the ratios as the table of ``docs/measuring.md``, and writes all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stackmap_testbed.cost.baseline import SHARED_AT_MOST, SHARED_EVENTS
from stackmap_testbed.cost.echo import add_nic_option, write_figures
from stackmap_testbed.cost.models import REPEATS, SATURATING, SERVERS, Server, run
from stackmap_testbed.lab.errors import LabError

#: Figures of a kernel: by whether requests come in bursts, server, bytes and connections.
Figures = Mapping[bool, Mapping[str, Mapping[str, Mapping[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A ratio of rings to sockets that is wanted.

    Attributes:
        what: its name in the table.
        rings: a server on rings.
        sockets: the one that it is compared with.
        connections: to both.
        wanted: the ratio, or less.
        size: of messages or values, in bytes.
        bursts: whether requests come in bursts.
        event: the event to compare; None for instructions.
    """

    what: str
    rings: str
    sockets: str
    connections: int
    wanted: float
    size: int = 64
    bursts: bool = False
    event: str | None = None

    def ratio(self, figures: Figures) -> tuple[float, float] | None:
        """The ratio, and how far it may be off: both servers' spreads added, as a part of it.

        None if the NIC's driver does not show the event.
        """
        number = str(self.connections)
        ours, theirs = (
            figures[self.bursts][name][str(self.size)][number]
            for name in (self.rings, self.sockets)
        )
        if self.event is not None:
            if self.event not in ours["events"]:
                return None
            return ours["events"][self.event] / theirs["events"][self.event], 0.0
        return ours["instructions"] / theirs["instructions"], ours["spread"] + theirs["spread"]


_SATURATED: dict[str, Any] = {"connections": SATURATING, "bursts": True}
GOALS = (
    Goal("echo in C, saturated", "C rings", "C epoll", wanted=0.65, **_SATURATED),
    Goal("the same over tuned epoll", "C rings", "C epoll tuned", wanted=0.75, **_SATURATED),
    Goal("echo in Python, 16 connections", "bare rings", "bare epoll", 16, 0.75),
    Goal("echo in C, one connection", "C rings", "C epoll", 1, 0.9),
    Goal("echo in Python, one connection", "bare rings", "bare epoll", 1, 0.9),
    *(
        Goal(f"{event}, saturated", "C rings", "C epoll", wanted=SHARED_AT_MOST, event=event,
             **_SATURATED)
        for event in SHARED_EVENTS
    ),
    Goal("asyncio's protocol, over uvloop", "rings protocol", "uvloop protocol", 16, 0.85),
    Goal(
        "memcached in Python over Debian's, GET", "memcached loop", "Debian's memcached", 64, 1.0
    ),
    *(
        Goal(f"the same over itself on sockets, {size} bytes", "memcached loop",
             "memcached loop on sockets", 16, wanted, size)
        for size, wanted in ((1024, 0.67), (16384, 0.67))
    ),
)  # fmt: skip


def servers(goals: Iterable[Goal]) -> dict[str, Server]:
    """The servers that goals name, with only the sizes and connections that they need."""
    cases: dict[str, list[Goal]] = {}
    for goal in goals:
        for name in (goal.rings, goal.sockets):
            cases.setdefault(name, []).append(goal)
    return {
        name: dataclasses.replace(
            SERVERS[name],
            sizes=sorted({goal.size for goal in each}),
            connections=sorted({goal.connections for goal in each}),
        )
        for name, each in cases.items()
    }


def table(measured: Mapping[str, Figures]) -> list[str]:
    """The lines of the table, in Markdown, with a column for each kernel."""
    lines = [
        f"| | {' | '.join(f'Linux {kernel}' for kernel in measured)} | goal |",
        f"| --- {'| ---: ' * len(measured)}| ---: |",
    ]
    for goal in GOALS:
        cells = []
        for figures in measured.values():
            found = goal.ratio(figures)
            if found is None:
                cells.append("-")
                continue
            ratio, apart = found
            cells.append(f"{ratio:.2f}" + ("" if goal.event else f" ± {ratio * apart / 2:.2f}"))
        lines.append(f"| {goal.what} | {' | '.join(cells)} | {goal.wanted:.2f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure on each kernel, print the table and write the figures."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--kernels", nargs="+", default=["6.12", "6.1"], metavar="SERIES")
    add_nic_option(parser)
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("out/bench-goals.json"))
    args = parser.parse_args(argv)
    measured: dict[str, dict[bool, Any]] = {}
    environments = {}
    try:
        for kernel in args.kernels:
            measured[kernel] = {}
            for bursts in (False, True):
                wanted = servers(goal for goal in GOALS if goal.bursts is bursts)
                found = run(kernel, None, wanted, args.repeats, bursts=bursts, nic=args.nic)
                measured[kernel][bursts] = found["servers"]
                environments[kernel] = found["environment"]
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines = table(measured)
    print("\n".join(lines))
    figures = {
        kernel: {"environment": environments[kernel], "one by one": each[False],
                 "in bursts": each[True]}
        for kernel, each in measured.items()
    }  # fmt: skip
    write_figures({"nic": args.nic, "table": lines, "kernels": figures}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
