"""The gate on cost: ``python -m stackmap_testbed.cost.gate --out out/bench-gate.json``.

Counts what an echo of 64 bytes costs the server, on rings and on epoll, in C and in Python, as
:mod:`stackmap_testbed.cost.models` counts it, and compares that with the figures that are kept.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from stackmap_testbed.cost.baseline import (
    GATED,
    KEPT,
    Record,
    Verdict,
    faults,
    judge,
    keep,
    read_kept,
    series,
)
from stackmap_testbed.cost.echo import command_line, write_figures
from stackmap_testbed.cost.models import CONNECTIONS, REPEATS, SERVERS, run
from stackmap_testbed.lab.errors import LabError

#: Figures that are kept are the median of more, and of other numbers of connections as well.
KEPT_REPEATS = 5
_BYTES = 64
_FIGURES = ("instructions", "spread", "parts", "sleeping", "repetitions", "events")
#: How many connections are gated where requests come one by one.
_CONNECTIONS = 16
_IN_BURSTS = " in bursts"


def measure(kernel: str, module: Path | None, *, to_keep: bool) -> Record:
    """Boot the machine, measure, and once more with requests in bursts.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    names = [name for pair in GATED for name in pair[:2]]
    repeats = KEPT_REPEATS if to_keep else REPEATS
    connections = CONNECTIONS if to_keep else (_CONNECTIONS,)
    figures: Record = {"servers": {}}
    for suffix in ("", _IN_BURSTS):
        servers = {
            name: dataclasses.replace(server, sizes=(_BYTES,), connections=connections)
            for name, server in SERVERS.items()
            if name + suffix in names
        }
        found = run(kernel, module, servers, repeats, bursts=bool(suffix))
        figures["environment"] = found["environment"]
        for name, sizes in found["servers"].items():
            figures["servers"][name + suffix] = {
                number: {figure: each[figure] for figure in _FIGURES}
                for number, each in sizes[str(_BYTES)].items()
            }
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the figures, compare; the exit status says whether the gate is passed."""
    parser = command_line("gate", __doc__, "out/bench-gate.json")
    parser.add_argument("--update", action="store_true", help=f"keep the figures in {KEPT.name}")
    args = parser.parse_args(argv)
    print("The gate on cost: an echo of 64 bytes in C and in Python (bare), on rings and on epoll.")
    try:
        measured = measure(args.kernel, args.module, to_keep=args.update)
        write_figures(measured, args.out)
        if args.update:
            failures = faults(measured)
            if not failures:
                keep(measured, KEPT)
            note = f"{'not ' if failures else ''}kept in {KEPT.name}"
            verdict = Verdict(not failures, (*failures, note))
        else:
            verdict = judge(measured, read_kept(series(measured), KEPT))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for sentence in verdict.sentences:
        print(sentence)
    print(f"{args.out} has the figures; the gate is {'passed' if verdict.passed else 'FAILED'}")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
