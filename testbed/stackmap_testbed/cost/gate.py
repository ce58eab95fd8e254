"""The gate on cost: ``python -m stackmap_testbed.cost.gate --out out/bench-gate.json``.

An echo of 64 bytes, on rings and on epoll, in turns, in a machine that counts its instructions
(:mod:`stackmap_testbed.cost.counting`).  Server and client share its one processor.  Everything
that the machine executes between two markers is counted: both ends' kernel, drivers and programs.
The client is the same for both servers, so their difference is the servers'.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stackmap_testbed.cost.baseline import KEPT, Record, Verdict, faults, judge, read_kept, record
from stackmap_testbed.cost.echo import SERVERS, command_line, machine, measure, write_figures
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.kernels import find_kernel
from stackmap_testbed.lab.versions import versions

CONNECTIONS = 16
#: Also measured, once, when the figures are kept.
OTHER_CONNECTIONS = (1, 128)
#: Epoll's are for comparison.  Figures that are kept are the median of more.
ROUNDS = {"epoll": 1, "ring": 3}
KEPT_ROUNDS = {"epoll": 2, "ring": 5}
# In which order 16 connections and two programs get their turns settles differently each time they
# begin, and stays: the mean of several beginnings repeats better than more of one.
BEGINNINGS = 6
REQUESTS = 2500


def run(kernel_name: str, module: Path | None, *, keep: bool) -> Record:
    """Boot the machine and measure; more, and other numbers of connections as well, to ``keep``.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    kernel = find_kernel(kernel_name)
    wanted = KEPT_ROUNDS if keep else ROUNDS
    rounds: dict[str, list[float]] = {server: [] for server in SERVERS}
    other_costs: dict[str, dict[str, int]] = {}
    begin = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)

    tell(f"booting a machine that counts its instructions: Linux {kernel.release}")
    with machine(kernel, module) as (guest, counter):
        tell(f"instructions per request of 64 bytes, echoed, {CONNECTIONS} connections:")
        for number in range(max(wanted.values())):
            for server, costs in rounds.items():
                if number >= wanted[server]:
                    continue
                found = measure(guest, counter, server, REQUESTS, BEGINNINGS * [CONNECTIONS])
                costs.append(found[CONNECTIONS])
                tell(f"round {number + 1}: {server:<5} {costs[-1]:8.0f}")
        for server in SERVERS if keep else ():
            found = measure(guest, counter, server, REQUESTS, OTHER_CONNECTIONS)
            for connections, cost in found.items():
                other_costs.setdefault(str(connections), {})[server] = round(cost)
                tell(f"for information, {connections} connections: {server:<5} {cost:8.0f}")
    figures = record(rounds["ring"], rounds["epoll"], versions(kernel.release))
    return {**figures, "connections": CONNECTIONS, "other_connections": other_costs}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the figures, compare; the exit status says whether the gate is passed."""
    parser = command_line("gate", __doc__, "out/bench-gate.json")
    parser.add_argument("--update", action="store_true", help=f"keep the figures in {KEPT.name}")
    args = parser.parse_args(argv)
    try:
        measured = run(args.kernel, args.module, keep=args.update)
        text = write_figures(measured, args.out)
        if args.update and (failures := faults(measured)):
            verdict = Verdict(False, (*failures, f"not kept in {KEPT.name}"))
        else:
            if args.update:
                KEPT.write_text(text)
            verdict = judge(measured, read_kept(KEPT))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{args.out}: {measured['ring']} instructions per request of the whole machine on rings, "
        f"{measured['epoll']} on epoll, spread {measured['spread']:.2%}"
    )
    for sentence in verdict.sentences:
        print(sentence)
    print("passed" if verdict.passed else "FAILED")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
