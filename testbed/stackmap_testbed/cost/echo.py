"""The instructions of a request: an echo, on rings or on epoll, in the machine that counts them."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from stackmap_testbed.cost.counting import AT_CLIENT, SERVER_NIC, Counter, counting_guest
from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.kernels import Kernel, module_for

#: Each server by the name that the figures have for it: its program, and its further arguments.
SERVERS = {
    "epoll": ("echo_epoll", ()),
    "ring": ("echo_rings", (SERVER_NIC,)),
}

_PORT = 7
# A machine busy with other things may make this take ten times as long as it should.
_PATIENCE = 600.0
# The order of a dictionary, and with it a program's way, depends on this unless it is given.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


class EchoError(LabError):
    """An echo server or its load did not do what it should."""


@contextlib.contextmanager
def machine(
    kernel: Kernel, module: Path | None, memory: int = 1024
) -> Iterator[tuple[Guest, Counter]]:
    """Boot the machine with the module loaded; at the end, check its kernel's log.

    Args:
        kernel: its kernel.
        module: the module's file; None for the one that ``make kmod`` built.
        memory: the machine's, in megabytes.

    Raises:
        LabError: it cannot be built or does not boot, or its kernel reported a bug.
    """
    file = module or module_for(kernel.release)
    with counting_guest(kernel, memory) as (guest, counter):
        guest.insmod(file)
        yield guest, counter
        guest.check_kernel_log()


def measure(
    guest: Guest,
    counter: Counter,
    server: str,
    requests: int,
    connections: Sequence[int | str],
    *,
    files: int | None = None,
    patience: float = _PATIENCE,
) -> dict[int, float]:
    """Instructions per request of one server, started for this, by number of connections.

    Epoll is measured as everybody runs it, without anything of this project on its NIC.

    Args:
        guest: the machine.
        counter: its counter.
        server: which of ``SERVERS``.
        requests: how many to measure, for each of ``connections``.
        connections: how many are open at a time; ``"N/W"`` has requests under way on W of N.
        files: how many descriptors server and client may have, instead of the usual limit.
        patience: seconds for the server to start, and for all its requests.

    Raises:
        EchoError: a reply was missing or wrong.
    """
    prefix = ("prlimit", f"--nofile={files}:{files}") if files else ()
    program, more = SERVERS[server]
    if server == "ring":
        guest.run(["tc", "qdisc", "replace", "dev", SERVER_NIC, "root", "stackmap"])
    process = guest.popen(
        [*prefix, *_command(program, SERVER_ADDRESS, _PORT, *more)], env=_ENVIRONMENT
    )
    try:
        process.wait_for_output("listening", timeout=patience)
        known = len(counter.marks())
        load = _command("echo_load", SERVER_ADDRESS, _PORT, requests, *connections)
        ended = guest.run([*AT_CLIENT, *prefix, *load], env=_ENVIRONMENT, timeout=patience)
    finally:
        process.kill(signal.SIGTERM)
        process.wait(patience)
    if server == "ring":
        guest.run(["tc", "qdisc", "del", "dev", SERVER_NIC, "root"])
    return per_request(ended.stdout, counter.marks()[known:])


def _command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{name}", *map(str, arguments)]


def per_request(report: str, marks: Sequence[int]) -> dict[int, float]:
    """Instructions per request by connections, from the load's report and the counts at its marks.

    The mean, where a number of connections was measured several times.

    Raises:
        EchoError: they do not fit each other, or there were errors.
    """
    lines = [json.loads(line) for line in report.splitlines()]
    if not lines or len(marks) != 2 * len(lines):
        raise EchoError(f"{len(marks)} markers were met for {len(lines)} measurements")
    costs: dict[int, list[float]] = {}
    for line, start, end in zip(lines, marks[::2], marks[1::2], strict=True):
        if line["errors"] or not line["requests"]:
            raise EchoError(
                f"with {line['connections']} connections {line['requests']} replies were right, "
                f"{line['errors']} wrong or missing"
            )
        costs.setdefault(line["connections"], []).append((end - start) / line["requests"])
    return {connections: fmean(found) for connections, found in costs.items()}


def command_line(name: str, description: str | None, out: str) -> argparse.ArgumentParser:
    """The options that the commands of this room share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.{name}", description=description
    )
    parser.add_argument("--kernel", default="6.12", metavar="SERIES")
    parser.add_argument(
        "--module", type=Path, help="stackmap.ko (default: as `make kmod` built it)"
    )
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def write_figures(figures: dict[str, Any], file: Path) -> str:
    """Write figures as JSON, and the folder if it is missing; returns the text."""
    text = json.dumps(figures, indent=2) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return text
