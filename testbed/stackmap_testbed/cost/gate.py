"""The gate on cost: ``python -m stackmap_testbed.cost.gate --out out/bench-gate.json``.

An echo of 64 bytes, on rings and on epoll, in turns, in a machine that counts its instructions
(:mod:`stackmap_testbed.cost.counting`).  Server and client share its one processor.  Everything
that the machine executes between two markers is counted: both ends' kernel, drivers and programs.
The client is the same for both servers, so their difference is the servers'.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from stackmap_testbed.cost.baseline import (
    KEPT,
    Record,
    Verdict,
    environment,
    faults,
    judge,
    read_kept,
    record,
)
from stackmap_testbed.cost.counting import (
    AT_CLIENT,
    SERVER_ADDRESS,
    SERVER_NIC,
    Counter,
    counting_guest,
)
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.kernels import find_kernel, module_for

CONNECTIONS = 16
#: Also measured, once, when the figures are kept.
OTHER_CONNECTIONS = (1, 128)
#: Epoll's are for comparison, and repeat as well: a second shows that they do.
ROUNDS = {"epoll": 2, "ring": 5}
# In which order 16 connections and two programs get their turns settles differently each time they
# begin, and stays: the mean of several beginnings repeats better than more of one.
BEGINNINGS = 6
REQUESTS = 2500

_PORT = 7
# A machine busy with other things may make this take ten times as long as it should.
_PATIENCE = 600.0
_SERVERS = {
    "epoll": ("echo_epoll", ()),
    "ring": ("echo_rings", (SERVER_NIC,)),
}
# The order of a dictionary, and with it a program's way, depends on this unless it is given.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


class GateError(LabError):
    """An echo server or its load did not do what it should."""


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{name}", *map(str, arguments)]


def measure(
    guest: Guest, counter: Counter, server: str, connections: Sequence[int]
) -> dict[int, float]:
    """Instructions per request of one server, started for this, by number of connections.

    Epoll is measured as everybody runs it, without anything of this project on its NIC.

    Raises:
        GateError: a reply was missing or wrong.
    """
    if server == "ring":
        guest.run(["tc", "qdisc", "replace", "dev", SERVER_NIC, "root", "stackmap"])
    program, more = _SERVERS[server]
    process = guest.popen(_module(program, SERVER_ADDRESS, _PORT, *more), env=_ENVIRONMENT)
    try:
        process.wait_for_output("listening", timeout=_PATIENCE)
        known = len(counter.marks())
        load = _module("echo_load", SERVER_ADDRESS, _PORT, REQUESTS, *connections)
        ended = guest.run([*AT_CLIENT, *load], env=_ENVIRONMENT, timeout=_PATIENCE)
    finally:
        process.kill(signal.SIGTERM)
        process.wait(_PATIENCE)
    if server == "ring":
        guest.run(["tc", "qdisc", "del", "dev", SERVER_NIC, "root"])
    return per_request(ended.stdout, counter.marks()[known:])


def per_request(report: str, marks: Sequence[int]) -> dict[int, float]:
    """Instructions per request by connections, from the load's report and the counts at its marks.

    The mean, where a number of connections was measured several times.

    Raises:
        GateError: they do not fit each other, or there were errors.
    """
    lines = [json.loads(line) for line in report.splitlines()]
    if not lines or len(marks) != 2 * len(lines):
        raise GateError(f"{len(marks)} markers were met for {len(lines)} measurements")
    costs: dict[int, list[float]] = {}
    for line, start, end in zip(lines, marks[::2], marks[1::2], strict=True):
        if line["errors"] or not line["requests"]:
            raise GateError(
                f"with {line['connections']} connections {line['requests']} replies were right, "
                f"{line['errors']} wrong or missing"
            )
        costs.setdefault(line["connections"], []).append((end - start) / line["requests"])
    return {connections: fmean(found) for connections, found in costs.items()}


def run(kernel_name: str, module: Path | None, *, others: bool) -> Record:
    """Boot the machine and measure, with other numbers of connections as well if ``others``.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    kernel = find_kernel(kernel_name)
    module = module or module_for(kernel.release)
    rounds: dict[str, list[float]] = {server: [] for server in _SERVERS}
    other_costs: dict[str, dict[str, int]] = {}
    begin = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)

    tell(f"booting a machine that counts its instructions: Linux {kernel.release}")
    with counting_guest(kernel) as (guest, counter):
        guest.insmod(module)
        tell(f"instructions per request of 64 bytes, echoed, {CONNECTIONS} connections:")
        for number in range(max(ROUNDS.values())):
            for server, costs in rounds.items():
                if number >= ROUNDS[server]:
                    continue
                costs.append(
                    measure(guest, counter, server, BEGINNINGS * [CONNECTIONS])[CONNECTIONS]
                )
                tell(f"round {number + 1}: {server:<5} {costs[-1]:8.0f}")
        for server in _SERVERS if others else ():
            for connections, cost in measure(guest, counter, server, OTHER_CONNECTIONS).items():
                other_costs.setdefault(str(connections), {})[server] = round(cost)
                tell(f"for information, {connections} connections: {server:<5} {cost:8.0f}")
        guest.check_kernel_log()
    figures = record(rounds["ring"], rounds["epoll"], environment(kernel.release))
    return {**figures, "connections": CONNECTIONS, "other_connections": other_costs}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the figures, compare; the exit status says whether the gate is passed."""
    parser = argparse.ArgumentParser(
        prog="python -m stackmap_testbed.cost.gate", description=__doc__
    )
    parser.add_argument("--kernel", default="6.12", metavar="SERIES")
    parser.add_argument(
        "--module", type=Path, help="stackmap.ko (default: as `make kmod` built it)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench-gate.json"))
    parser.add_argument("--update", action="store_true", help=f"keep the figures in {KEPT.name}")
    args = parser.parse_args(argv)
    try:
        measured = run(args.kernel, args.module, others=args.update)
        text = json.dumps(measured, indent=2) + "\n"
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
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
