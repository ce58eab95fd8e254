"""The instructions of a request: an echo, on rings or on epoll, in the machine that counts them."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stackmap_testbed.cost.counting import AT_CLIENT, SERVER_NIC, Counter, counting_guest
from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from stackmap_testbed.lab.errors import GuestTimeoutError, LabError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.kernels import Kernel, module_for
from stackmap_testbed.lab.process import GuestProcess

#: Each server by the name that the figures have for it: its program, and its further arguments.
SERVERS = {
    "epoll": ("echo_epoll", ()),
    "ring": ("echo_rings", (SERVER_NIC,)),
}

PORT = 7
# A machine busy with other things may make this take ten times as long as it should.
_PATIENCE = 600.0
# The order of a dictionary, and with it a program's way, depends on this unless it is given.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


class EchoError(LabError):
    """An echo server or its load did not do what it should."""


@contextlib.contextmanager
def machine(
    kernel: Kernel, module: Path | None, memory: int = 1024, *, separate: bool = False
) -> Iterator[tuple[Guest, Counter]]:
    """Boot the machine with the module loaded; at the end, check its kernel's log.

    Args:
        kernel: its kernel.
        module: the module's file; None for the one that ``make kmod`` built.
        memory: the machine's, in megabytes.
        separate: whether the server has a processor of its own; see :func:`counting_guest`.

    Raises:
        LabError: it cannot be built or does not boot, or its kernel reported a bug.
    """
    file = module or module_for(kernel.release)
    with counting_guest(kernel, memory, separate=separate) as (guest, counter):
        guest.insmod(file)
        yield guest, counter
        guest.check_kernel_log()


@contextlib.contextmanager
def running(
    guest: Guest, command: Sequence[str], *, rings: bool, patience: float = _PATIENCE
) -> Iterator[GuestProcess]:
    """Run a server; its NIC is bound if it is to have rings, and as Debian sets it up if not.

    Args:
        guest: the machine.
        command: the server, which prints that it is listening.
        rings: whether its NIC is bound.
        patience: seconds for it to start, and to end.

    Raises:
        LabError: it cannot be started, or does not listen.
    """
    if rings:
        guest.run(["tc", "qdisc", "replace", "dev", SERVER_NIC, "root", "stackmap"])
    process = guest.popen(command, env=_ENVIRONMENT)
    try:
        try:
            process.wait_for_output("listening", timeout=patience)
        except GuestTimeoutError as error:
            said = process.output().strip()[-2000:] or "nothing"
            raise EchoError(
                f"the server does not listen on {SERVER_ADDRESS}, port {PORT}; it said: {said}"
            ) from error
        yield process
    finally:
        process.kill(signal.SIGTERM)
        process.wait(patience)
    if rings:
        guest.run(["tc", "qdisc", "del", "dev", SERVER_NIC, "root"])


def load(
    guest: Guest,
    requests: int,
    connections: Sequence[int | str],
    *options: str,
    prefix: Sequence[str] = (),
    patience: float = _PATIENCE,
) -> list[Measured]:
    """Load the server that listens.

    Args:
        guest: the machine.
        requests: how many to measure, for each of ``connections``.
        connections: how many are open at a time; ``"N/W"`` has requests under way on W of N.
        options: further ones of ``echo_load``.
        prefix: what its command begins with.
        patience: seconds for all requests.

    Raises:
        EchoError: a reply was missing or wrong.
    """
    command = own_command("echo_load", SERVER_ADDRESS, PORT, requests, *connections, *options)
    ended = guest.run([*AT_CLIENT, *prefix, *command], env=_ENVIRONMENT, timeout=patience)
    return read_report(ended.stdout)


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
    command = [*prefix, *own_command(program, SERVER_ADDRESS, PORT, *more)]
    with running(guest, command, rings=server == "ring", patience=patience):
        known = len(counter.marks())
        report = load(guest, requests, connections, prefix=prefix, patience=patience)
    return per_request(report, counter.marks()[known:])


def own_command(name: str, *arguments: object) -> list[str]:
    """The command of a program of this room."""
    return [sys.executable, "-m", f"{__package__}.{name}", *map(str, arguments)]


def announced(command: Sequence[str]) -> list[str]:
    """The command of a server that may not say when it is listening: its port does."""
    listens = f"ss -Hltn sport = :{PORT} | grep -q ."
    waiting = f"until {listens}; do kill -0 $$ 2>/dev/null || exit; sleep 0.1; done; echo listening"
    return ["/bin/sh", "-c", f'({waiting}) & exec "$@"', "-", *command]


@dataclass(frozen=True, slots=True)
class Measured:
    """The work of the load between two markers.

    Attributes:
        size: of messages, in bytes.
        connections: how many.
        requests: how many were answered.
        p99_ns: the latency that 99 of 100 do not exceed, in the guest's time.
    """

    size: int
    connections: int
    requests: int
    p99_ns: int


def read_report(report: str) -> list[Measured]:
    """Read what the load printed.

    Raises:
        EchoError: a reply was missing or wrong.
    """
    measured = []
    for line in map(json.loads, report.splitlines()):
        if line["errors"] or not line["requests"]:
            raise EchoError(
                f"with {line['connections']} connections {line['requests']} replies were right, "
                f"{line['errors']} wrong or missing"
            )
        measured.append(
            Measured(line["bytes"], line["connections"], line["requests"], line["p99_ns"])
        )
    return measured


def per_request(report: Sequence[Measured], marks: Sequence[int]) -> dict[int, float]:
    """Instructions per request by connections, from the load's report and the counts at its marks.

    The mean, where a number of connections was measured several times.

    Raises:
        EchoError: they do not fit each other.
    """
    if not report or len(marks) != 2 * len(report):
        raise EchoError(f"{len(marks)} markers were met for {len(report)} measurements")
    costs: dict[int, list[float]] = {}
    for measured, start, end in zip(report, marks[::2], marks[1::2], strict=True):
        costs.setdefault(measured.connections, []).append((end - start) / measured.requests)
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
