"""The instructions of a request: an echo, on rings or on epoll, in the machine that counts them."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackmap_testbed.cost.counting import (
    AT_CLIENT,
    NICS,
    SERVER_NIC,
    VIRTIO,
    Counter,
    counting_guest,
)
from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from stackmap_testbed.lab.errors import GuestTimeoutError, LabError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.kernels import Kernel, module_for
from stackmap_testbed.lab.process import GuestProcess

PORT = 7
#: The machine's, in megabytes.
MEMORY = 1024
# A machine busy with other things may make this take ten times as long as it should: a server's
# start and end, and a load, which may open ten thousand connections.
_PATIENCE = 600.0
_LOAD_PATIENCE = 3600.0
# The order of a dictionary, and with it a program's way, depends on this unless it is given.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


class EchoError(LabError):
    """An echo server or its load did not do what it should."""


@contextlib.contextmanager
def machine(
    kernel: Kernel,
    module: Path | None,
    memory: int = MEMORY,
    *,
    bursts: bool = False,
    nic: str = VIRTIO,
    boot: str = "",
) -> Iterator[tuple[Guest, Counter]]:
    """Boot the machine with the module loaded; at the end, check its kernel's log.

    Args:
        kernel: its kernel.
        module: the module's file; None for the one that ``make kmod`` built.
        memory: the machine's, in megabytes.
        bursts: whether requests come in bursts; see :func:`counting_guest`.
        nic: the server's NIC; see there, too.
        boot: see there, too.

    Raises:
        LabError: it cannot be built or does not boot, or its kernel reported a bug.
    """
    file = module or module_for(kernel.release)
    with counting_guest(kernel, memory, bursts=bursts, nic=nic, boot=boot) as (guest, counter):
        guest.insmod(file)
        yield guest, counter
        guest.check_kernel_log()


@contextlib.contextmanager
def running(guest: Guest, command: Sequence[str], *, rings: bool) -> Iterator[GuestProcess]:
    """Run a server; its NIC is bound if it is to have rings, and as Debian sets it up if not.

    Args:
        guest: the machine.
        command: the server, which prints that it is listening.
        rings: whether its NIC is bound.

    Raises:
        LabError: it cannot be started, or does not listen.
    """
    if rings:
        guest.run(["tc", "qdisc", "replace", "dev", SERVER_NIC, "root", "stackmap"])
    process = guest.popen(command, env=_ENVIRONMENT)
    try:
        try:
            process.wait_for_output("listening", timeout=_PATIENCE)
        except GuestTimeoutError as error:
            said = process.output().strip()[-2000:] or "nothing"
            raise EchoError(
                f"the server does not listen on {SERVER_ADDRESS}, port {PORT}; it said: {said}"
            ) from error
        yield process
    finally:
        process.kill(signal.SIGTERM)
        process.wait(_PATIENCE)
    if rings:
        guest.run(["tc", "qdisc", "del", "dev", SERVER_NIC, "root"])


def load(
    guest: Guest,
    requests: int,
    connections: Sequence[int | str],
    *options: str,
    prefix: Sequence[str] = (),
) -> list[Measured]:
    """Load the server that listens.

    Args:
        guest: the machine.
        requests: how many to measure, for each of ``connections``.
        connections: how many are open at a time; ``"N/W"`` has requests under way on W of N.
        options: further ones of ``echo_load``.
        prefix: what its command begins with.

    Raises:
        EchoError: a reply was missing or wrong.
    """
    command = own_command("echo_load", SERVER_ADDRESS, PORT, requests, *connections, *options)
    ended = guest.run([*AT_CLIENT, *prefix, *command], env=_ENVIRONMENT, timeout=_LOAD_PATIENCE)
    return read_report(ended.stdout)


def own_command(name: str, *arguments: object) -> list[str]:
    """The command of a program of this room."""
    return [sys.executable, "-m", f"{__package__}.{name}", *map(str, arguments)]


# Beside the server, whose process has the number of the shell that becomes it.
_AWAIT_PORT = f"""
until ss -Hltn sport = :{PORT} | grep -q .; do
    kill -0 $$ 2>/dev/null || exit
    sleep 0.1
    elsewhere=$(ss -Hltnp | grep "pid=$$," | awk '{{ print $4 }}')
    if [ -n "$elsewhere" ] && [ $((tries -= 1)) -le 0 ]; then
        echo "it listens on" $elsewhere
        kill $$
        exit
    fi
done
echo listening
"""


def announced(command: Sequence[str], patience: float = 5.0) -> list[str]:
    """The command of a server that may not say when it is listening: its port does.

    If it has listened on other ports only for ``patience`` seconds, this says so, and ends it.
    """
    script = f'(tries={round(patience * 10)}; {_AWAIT_PORT}) & exec "$@"'
    return ["/bin/sh", "-c", script, "-", *command]


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


def add_nic_option(parser: argparse.ArgumentParser) -> None:
    """Let the user choose the server's NIC."""
    parser.add_argument(
        "--nic", choices=NICS, default=VIRTIO, help="the server's (default: %(default)s)"
    )


def pattern(text: str) -> re.Pattern[str]:
    """An option that is a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no pattern: {error}") from error


def positive(text: str) -> int:
    """An option that is a number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def write_figures(figures: dict[str, Any], file: Path) -> str:
    """Write figures as JSON, and the folder if it is missing; returns the text."""
    text = json.dumps(figures, indent=2) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return text
