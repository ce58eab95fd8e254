"""A server's cost by part: ``python -m stackmap_testbed.cost.profile --out out/profile``.

Counts what a request costs the server alone, as :mod:`stackmap_testbed.cost.models` counts it, and
prints and draws it by part: user mode, the module, and the parts of the kernel, servers on rings
beside the same on sockets.  Servers of your own are measured with --rings and --sockets; they serve
10.77.0.1, port 7, and their NIC is eth0.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from stackmap_testbed.cost.baseline import PAIRS
from stackmap_testbed.cost.by_part import Profile, beside, profiles, read_profiles
from stackmap_testbed.cost.echo import (
    add_nic_option,
    announced,
    command_line,
    pattern,
    positive,
    write_figures,
)
from stackmap_testbed.cost.models import CONNECTIONS, REPEATS, SERVERS, Server, run
from stackmap_testbed.cost.profile_plot import plot_profiles
from stackmap_testbed.cost.profile_table import table
from stackmap_testbed.lab.errors import LabError

_BYTES = 64
#: Columns where there is no terminal.
_WIDTH = 160
#: The options of the load for each protocol.
_LOADS = {"echo": (), "memcached": ("--memcached",), "http": ("--http",)}


class _Own(argparse.Action):
    """Adds a server of the reader's own, ``NAME=COMMAND``, to ``args.own``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, _, command = values.partition("=")
        kind = str(option_string).lstrip("-")
        try:
            words = shlex.split(command)
        except ValueError as error:
            parser.error(f"{option_string}: {command!r} is not a command: {error}")
        if not name or not words:
            parser.error(f"{option_string} takes NAME=COMMAND, and not {values!r}")
        if f"{name} {kind}" in namespace.own:
            parser.error(f"{option_string}: there are two servers with the name {name!r}")
        server = Server(announced(words), rings=kind == "rings")
        namespace.own = {**namespace.own, f"{name} {kind}": server}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("profile", __doc__, "out/profile")
    add_nic_option(parser)
    parser.add_argument(
        "--servers",
        type=pattern,
        metavar="PATTERN",
        help="those of bench-models, or of --from, whose names have it in them "
        f"(default: {', '.join(name for pair in PAIRS.items() for name in pair)})",
    )
    for kind, bound in (("rings", "its NIC is bound"), ("sockets", "its NIC is not bound")):
        parser.add_argument(
            f"--{kind}",
            action=_Own,
            dest="own",
            default={},
            metavar="NAME=COMMAND",
            help=f"a server of your own; {bound}; may be given several times",
        )
    parser.add_argument(
        "--load", choices=_LOADS, default="echo", help="what your own servers are asked"
    )
    parser.add_argument(
        "--connections", type=positive, nargs="+", metavar="N", help="default: 1 16 64"
    )
    parser.add_argument("--bytes", type=positive, nargs="+", metavar="N", help="default: 64")
    parser.add_argument("--repeats", type=positive, default=REPEATS, metavar="N")
    parser.add_argument(
        "--top", type=positive, default=0, metavar="N", help="show so many functions of each part"
    )
    parser.add_argument(
        "--from",
        type=Path,
        nargs="+",
        dest="files",
        metavar="FILE",
        help="measure nothing; show the figures in these, each beside the others",
    )
    args = parser.parse_args(argv)
    if args.files and args.own:
        parser.error("--from measures nothing, so there is no use for --rings and --sockets")
    return args


def _servers(args: argparse.Namespace) -> dict[str, Server]:
    """The servers to measure.

    Raises:
        LabError: there are none.
    """
    if args.servers:
        known = {name: server for name, server in SERVERS.items() if args.servers.search(name)}
        if not known:
            raise LabError(
                f"no server's name has {args.servers.pattern!r} in it; there are "
                f"{', '.join(SERVERS)}"
            )
    else:
        known = {} if args.own else {name: SERVERS[name] for pair in PAIRS.items() for name in pair}
    own = {
        name: dataclasses.replace(server, load=_LOADS[args.load])
        for name, server in args.own.items()
    }
    return {
        name: dataclasses.replace(
            server, sizes=args.bytes or (_BYTES,), connections=args.connections or CONNECTIONS
        )
        for name, server in {**known, **own}.items()
    }


def _measure(args: argparse.Namespace) -> list[Profile]:
    """Measure, and write the figures.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    figures = run(args.kernel, args.module, _servers(args), args.repeats, nic=args.nic)
    found = profiles(figures)
    for each in found:
        entry = figures["servers"][each.server][str(each.size)][str(each.connections)]
        entry["by part"] = {part: round(number) for part, number in each.parts.items()}
    write_figures(figures, args.out / "profile.json")
    return found


def _chosen(args: argparse.Namespace) -> list[Profile]:
    """The profiles in files that are asked for.

    Raises:
        LabError: there are none, or a file cannot be understood.
    """
    chosen = [
        each
        for each in read_profiles(args.files)
        if (not args.servers or args.servers.search(each.server))
        and (not args.bytes or each.size in args.bytes)
        and (not args.connections or each.connections in args.connections)
    ]
    if not chosen:
        raise LabError(f"{', '.join(map(str, args.files))}: nothing in there is what you asked for")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or read, print and draw."""
    args = _arguments(argv)
    try:
        found = _chosen(args) if args.files else _measure(args)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found.sort(key=lambda each: (each.size, each.connections))
    groups = [
        [each for pair in beside(list(group)) for each in pair if each]
        for _, group in groupby(found, lambda each: (each.size, each.connections))
    ]
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print("The server alone, in thousands of instructions per request")
    for group in groups:
        console.print(table(group, args.top))
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = [args.out / f"profile.{ending}" for ending in ("svg", "png")]
    plot_profiles(groups, "What a request costs the server", pictures)
    for path in pictures if args.files else [args.out / "profile.json", *pictures]:
        console.print(path, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
