"""The main job, start to end.

``python -m stackmap_testbed.comparison.demo --kernel 6.12 --out out/demo``

Two hosts boot, the module is loaded on one and its NIC bound, a memcached client on the other uses
the server on rings, then the server on rings is measured against itself on sockets: as fast as
replies come, and at stated loads.  Leaves ``report.json``, ``report.html`` and ``latency.png``.
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

from stackmap_testbed.comparison.experiment import (
    BACKENDS,
    LoadError,
    Plan,
    Run,
    ServerError,
    measure,
    peak,
    program,
    schedule,
    serving,
)
from stackmap_testbed.comparison.machine import describe_machine
from stackmap_testbed.comparison.plot import plot_latency
from stackmap_testbed.comparison.report import (
    LABELS,
    LOAD_COLUMNS,
    RATIO_COLUMNS,
    saturation,
    verdict,
    write_html,
)
from stackmap_testbed.comparison.summary import saturated, summarise
from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from stackmap_testbed.lab.errors import KernelLogError, LabError
from stackmap_testbed.lab.kernels import module_for
from stackmap_testbed.lab.lab import Lab


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


def loaded_module(lab: Lab) -> dict[str, str]:
    """Which module the server has loaded."""
    return {
        name: lab.server.run(["cat", f"/sys/module/stackmap/{name}"]).stdout.strip()
        for name in ("version", "srcversion")
    }


def show_client(lab: Lab, plan: Plan, narrator: Narrator) -> None:
    """Let pymemcache on the client host use the server on rings.

    Raises:
        DemoError: an answer was not the right one.
    """
    narrator.title("A memcached client on the other host (pymemcache), the server on rings")
    command = [sys.executable, "-m", "stackmap_testbed.comparison.client_demo"]
    command += ["--host", plan.address, "--port", str(plan.port)]
    with serving(lab.server, plan, "stackmap"):
        result = lab.client.run(command, timeout=plan.patience, check=False)
    for line in result.stdout.splitlines():
        narrator.say(line)
    if result.returncode:
        raise DemoError(f"the client got wrong answers: {result.stderr.strip()[-800:]}")


def compare(lab: Lab, plan: Plan, narrator: Narrator) -> list[Run]:
    """All runs, in their order."""
    sockets = "tuned sockets" if plan.tuned else "sockets"
    narrator.title(f"The same server, on rings and on {sockets}, in turns")
    runs: list[Run] = []
    for step in schedule(plan):
        rate = None if step.load is None else step.load * peak(runs, step.connections)
        run = measure(lab, plan, step, rate)
        runs.append(run)
        narrator.say(describe_run(run))
    return runs


def describe_run(run: Run) -> str:
    """A run in a line."""
    load = "closed loop" if run.offered is None else f"{run.offered:6.0f} due/s"
    latency = (
        "saturated"
        if saturated(run)
        else f"p99 {run.latency_us['p99'] / 1000:6.2f} ms, {run.errors} errors"
    )
    return (
        f"{run.connections:4} connections, {load}, round {run.round + 1}: "
        f"{LABELS[run.backend]:<7} {run.requests_per_second:6.0f} requests/s, {latency}"
    )


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


#: Columns of a table that fit into a terminal.
_SHOWN = ("p99", "p999", "requests_per_cpu_second")
_COLOURS = {"better": "green", "worse": "red", "": "default"}


def _ratio_cell(values: dict[str, float], *, more_is_better: bool) -> str:
    colour = _COLOURS[verdict(values, more_is_better=more_is_better)]
    extremes = f"{values['min']:.2f}-{values['max']:.2f}"
    return f"[{colour}]{values['median']:.2f}[/]\n[dim]{extremes}[/]"


def ratio_table(report: dict[str, Any]) -> Table:
    """The closed loop's result in a terminal."""
    table = Table(
        title="closed loop: rings over sockets, median of rounds and their extremes",
        show_lines=True,
    )
    table.add_column("connections", justify="right")
    for _, heading, _ in RATIO_COLUMNS:
        table.add_column(heading, justify="right")
    for connections, ratio in report["ratio"].items():
        table.add_row(
            connections,
            *(
                _ratio_cell(ratio[name], more_is_better=more_is_better)
                for name, _, more_is_better in RATIO_COLUMNS
            ),
        )
    return table


def load_table(report: dict[str, Any]) -> Table:
    """The open loop's result in a terminal of 80 columns."""
    table = Table(
        title="open loop: rings over sockets at a share of the peak, latency since due",
        show_lines=True,
    )
    for heading in ("conn.", "offered", *(f"{LABELS[name]} achieved" for name in BACKENDS)):
        table.add_column(heading, justify="right")
    columns = [column for column in LOAD_COLUMNS if column[0] in _SHOWN]
    for _, heading, _ in columns:
        table.add_column(heading, justify="right")
    for entry in report["loads"]:
        if entry["load"] is None:
            continue
        row = [str(entry["connections"]), f"{entry['load']:.0%}\n{entry['offered']:.0f}/s"]
        for backend in BACKENDS:
            late = saturation(entry[backend], entry["rounds"]).replace(" in", "\nin")
            row.append(
                f"[red]{late}[/]" if late else f"{entry[backend]['achieved']['median']:.0f}/s"
            )
        if entry["ratio"] is not None:
            row += [
                _ratio_cell(entry["ratio"][name], more_is_better=more_is_better)
                for name, _, more_is_better in columns
            ]
        table.add_row(*row)
    return table


def write_reports(report: dict[str, Any], runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the three files; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    data, page, picture = out / "report.json", out / "report.html", out / "latency.png"
    data.write_text(json.dumps(report, indent=2) + "\n")
    plot_latency(
        runs,
        report["loads"],
        f"memcached GET of {report['plan']['value_size']} bytes, Linux {report['kernel']}",
        "Emulated machines: compare the curves, the milliseconds mean nothing."
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
        module = loaded_module(lab)
        show_client(lab, plan, narrator)
        runs = compare(lab, plan, narrator)
        report = summarise(
            plan,
            runs,
            kernel=lab.release,
            accel=lab.accel or "",
            module=module,
            machine=machine,
            kernel_log=kernel_logs(lab),
        )
    paths = write_reports(report, runs, out)
    narrator.title("The result")
    narrator.console.print(ratio_table(report))
    narrator.console.print(load_table(report))
    narrator.console.print(
        "1 is equal. Coloured where every round agrees. The peak, of which a load is a share, is "
        "the lower of both servers' closed loops.",
        *report["caveats"],
        highlight=False,
    )
    for problem in report["problems"]:
        narrator.console.print(f"[red]PROBLEM[/] {problem}", highlight=False)
    for path in paths:
        narrator.console.print(path, highlight=False, soft_wrap=True)
    return not report["problems"]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: all well; 1: it could not be done, or something is wrong with the result."""
    parser = argparse.ArgumentParser(
        prog="python -m stackmap_testbed.comparison.demo",
        description="Boot two hosts and compare the server on rings with the server on sockets.",
    )
    parser.add_argument("--kernel", default="6.12", help="6.12 (default), 6.1, or a release")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="FOLDER")
    usual = Plan(SERVER_ADDRESS)
    parser.add_argument(
        "--rounds", type=int, default=usual.rounds, metavar="N", help="of the closed loop"
    )
    parser.add_argument(
        "--seconds", type=float, default=usual.seconds, help="measured in each of its runs"
    )
    parser.add_argument(
        "--open-rounds", type=int, default=usual.open_rounds, metavar="N", help="of the open loop"
    )
    parser.add_argument(
        "--open-seconds",
        type=float,
        default=usual.open_seconds,
        metavar="SECONDS",
        help="measured in each of its runs",
    )
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="have the server on sockets poll its NIC busily, with few interrupts",
    )
    parser.add_argument("--value-size", type=int, default=usual.value_size, metavar="BYTES")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=usual.connections, metavar="N"
    )
    parser.add_argument(
        "--open-connections",
        type=int,
        nargs="+",
        default=usual.open_connections,
        metavar="N",
        help="those of them with which the open loop runs, too",
    )
    args = parser.parse_args(argv)
    plan = Plan(
        address=SERVER_ADDRESS,
        connections=tuple(args.connections),
        open_connections=tuple(args.open_connections),
        rounds=args.rounds,
        value_size=args.value_size,
        seconds=args.seconds,
        open_rounds=args.open_rounds,
        open_seconds=args.open_seconds,
        tuned=args.tuned,
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
