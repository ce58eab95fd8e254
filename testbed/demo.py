"""The main job, start to end: ``python -m stackmap_testbed.demo --kernel 6.12 --out out/demo``.

Two hosts boot, the module is loaded on one and its NIC bound, a memcached client on the other uses
the server on rings, then the server on rings is measured against itself on sockets.  Leaves
``report.json``, ``report.html`` and ``latency.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stackmap_testbed.errors import KernelLogError, LabError
from stackmap_testbed.experiment import (
    LoadError,
    Plan,
    Run,
    ServerError,
    measure,
    program,
    schedule,
    serving,
)
from stackmap_testbed.kernels import module_for
from stackmap_testbed.lab import SERVER_ADDRESS, Lab
from stackmap_testbed.machine import describe_machine
from stackmap_testbed.plot import plot_latency
from stackmap_testbed.report import RATIO_COLUMNS, verdict, write_html
from stackmap_testbed.summary import summarise


class DemoError(Exception):
    """The demonstration cannot go on; ``str()`` says why."""


class Narrator:
    """Says what happens, and when."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line of progress."""
        elapsed = time.monotonic() - self._start
        self.console.print(f"[dim]{elapsed:6.1f} s[/]  {text}", highlight=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """Begin a part of the story."""
        self.console.print(f"\n[bold]{text}[/]", highlight=False)


def bind(lab: Lab, plan: Plan, narrator: Narrator) -> None:
    """Load the module on the server and put its hooks on the NIC."""
    module = module_for(lab.release)
    narrator.title("The module, on the server")
    command = [program("stackmap"), "bind", plan.nic, "--module", str(module)]
    result = lab.server.run(command, timeout=plan.patience)
    for line in result.stdout.splitlines():
        narrator.say(line)


def show_client(lab: Lab, plan: Plan, narrator: Narrator) -> None:
    """Let pymemcache on the client host use the server on rings.

    Raises:
        DemoError: an answer was not the right one.
    """
    narrator.title("A memcached client on the other host (pymemcache), the server on rings")
    command = [sys.executable, "-m", "stackmap_testbed.showcase"]
    command += ["--host", plan.address, "--port", str(plan.port)]
    with serving(lab.server, plan, "stackmap"):
        result = lab.client.run(command, timeout=plan.patience, check=False)
    for line in result.stdout.splitlines():
        narrator.say(line)
    if result.returncode:
        raise DemoError(f"the client got wrong answers: {result.stderr.strip()[-800:]}")


def compare(lab: Lab, plan: Plan, narrator: Narrator) -> list[Run]:
    """All runs, in their order."""
    narrator.title("The same server, on rings and on sockets, in turns")
    runs = []
    for connections, number, backend in schedule(plan):
        run = measure(lab, plan, connections, number, backend)
        runs.append(run)
        narrator.say(
            f"{connections:4} connections, round {number + 1}: {backend:<9}"
            f"{run.requests_per_second:8.0f} requests/s"
            f"{run.server_cpu_us_per_request:8.1f} µs server CPU each"
            f"   p99 {run.latency_us['p99'] / 1000:7.2f} ms"
            f"   {run.errors} errors"
        )
    return runs


def kernel_logs(lab: Lab) -> dict[str, list[str]]:
    """Lines of the hosts' kernel logs that must not be there."""
    found: dict[str, list[str]] = {}
    for guest in (lab.server, lab.client):
        found[guest.name] = []
        try:
            guest.check_kernel_log()
        except KernelLogError as error:
            found[guest.name] = error.lines
    return found


def ratio_table(report: dict[str, Any]) -> Table:
    """The result in a terminal."""
    table = Table(
        title="rings over sockets: median of rounds, and their extremes; 1 is equal",
        show_lines=True,
    )
    table.add_column("connections", justify="right")
    for _, heading, _ in RATIO_COLUMNS:
        table.add_column(heading, justify="right")
    colours = {"better": "green", "worse": "red", "": "default"}
    for connections, ratio in report["ratio"].items():
        cells = []
        for name, _, more_is_better in RATIO_COLUMNS:
            values = ratio[name]
            colour = colours[verdict(values, more_is_better=more_is_better)]
            extremes = f"{values['min']:.2f} to {values['max']:.2f}"
            cells.append(f"[{colour}]{values['median']:.2f}[/]\n[dim]{extremes}[/]")
        table.add_row(connections, *cells)
    return table


def write_reports(report: dict[str, Any], runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the three files; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    data, page, picture = out / "report.json", out / "report.html", out / "latency.png"
    data.write_text(json.dumps(report, indent=2) + "\n")
    plot_latency(
        runs,
        f"memcached GET of {report['plan']['value_size']} bytes, Linux {report['kernel']}",
        "emulated machines: compare the curves, the milliseconds mean nothing"
        if report["accel"] == "tcg"
        else "",
        picture,
    )
    write_html(report, picture, page)
    return [data, page, picture]


def demonstrate(kernel: str, plan: Plan, out: Path, narrator: Narrator) -> bool:
    """Do it all; returns whether all was well.

    Raises:
        DemoError, LabError, LoadError, ServerError: it could not be done.
    """
    narrator.title("Two hosts")
    lab = Lab(kernel=kernel)
    module_for(lab.release)
    machine = describe_machine()
    with lab.up(narrator.say):
        bind(lab, plan, narrator)
        show_client(lab, plan, narrator)
        runs = compare(lab, plan, narrator)
        report = summarise(
            plan,
            runs,
            kernel=lab.release,
            accel=lab.accel or "",
            machine=machine,
            kernel_log=kernel_logs(lab),
        )
    paths = write_reports(report, runs, out)
    narrator.title("The result")
    narrator.console.print(ratio_table(report))
    if report["caveat"]:
        narrator.console.print(report["caveat"], style="dim", highlight=False)
    for problem in report["problems"]:
        narrator.console.print(f"[red]PROBLEM[/] {problem}", highlight=False)
    for path in paths:
        narrator.console.print(path, highlight=False, soft_wrap=True)
    return not report["problems"]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: all well; 1: it could not be done, or something is wrong with the result."""
    parser = argparse.ArgumentParser(
        prog="python -m stackmap_testbed.demo",
        description="Boot two hosts and compare the server on rings with the server on sockets.",
    )
    parser.add_argument("--kernel", default="6.12", help="6.12 (default), 6.1, or a release")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="FOLDER")
    usual = Plan(SERVER_ADDRESS)
    parser.add_argument("--rounds", type=int, default=usual.rounds, metavar="N")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="measured in each run")
    parser.add_argument("--value-size", type=int, default=usual.value_size, metavar="BYTES")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=usual.connections, metavar="N"
    )
    args = parser.parse_args(argv)
    plan = Plan(
        address=SERVER_ADDRESS,
        connections=tuple(args.connections),
        rounds=args.rounds,
        value_size=args.value_size,
        seconds=args.seconds,
    )
    narrator = Narrator(Console())
    try:
        return 0 if demonstrate(args.kernel, plan, args.out, narrator) else 1
    except (DemoError, LabError, LoadError, ServerError) as error:
        narrator.console.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        notes = getattr(error, "__notes__", [])
        if notes:
            args.out.mkdir(parents=True, exist_ok=True)
            evidence = args.out / "failure.txt"
            evidence.write_text("\n".join(notes))
            narrator.console.print(f"the state of both hosts then: {evidence}", highlight=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
