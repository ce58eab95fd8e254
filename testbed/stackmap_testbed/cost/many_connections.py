"""The cost of a request among many connections.

``python -m stackmap_testbed.cost.many_connections --out out/bench-connections.json``

An echo, in a machine that counts the instructions of both ends, with few and with many connections.
Both numbers have the same number of requests under way, on all connections in turn, so that only
the number of connections differs.  Rings are compared with epoll, because part of the difference is
TCP's: on a connection that is used rarely, a reply is acknowledged by a packet of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stackmap_testbed.cost.echo import SERVERS, command_line, machine, measure, write_figures
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.kernels import Kernel, find_kernel
from stackmap_testbed.lab.versions import versions

FEW, MANY = 100, 10_000
#: Requests under way.
WINDOW = 64
#: Each connection has one at least, before and while it is measured.
REQUESTS = MANY
#: How much more a request may cost with many connections.
LIMIT = 1.3

_MEMORY_MB = 2048
_FILES = MANY + 100
_PATIENCE = 3600.0


def run(kernel: Kernel, module: Path | None) -> dict[str, dict[int, float]]:
    """Instructions per request, by server and number of connections.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    costs: dict[str, dict[int, float]] = {server: {} for server in SERVERS}
    with machine(kernel, module, _MEMORY_MB) as (guest, counter):
        for server in SERVERS:
            for connections in (FEW, MANY):
                load = [f"{connections}/{WINDOW}"]
                costs[server] |= measure(
                    guest, counter, server, REQUESTS, load, files=_FILES, patience=_PATIENCE
                )
                cost = costs[server][connections]
                print(f"{connections:6} connections: {server:<5} {cost:8.0f}", flush=True)
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures; the exit status says whether the limit is kept."""
    args = command_line("many_connections", __doc__, "out/bench-connections.json").parse_args(argv)
    print("instructions per request of the whole machine")
    try:
        kernel = find_kernel(args.kernel)
        costs = run(kernel, args.module)
        environment = versions(kernel.release)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ratios = {server: cost[MANY] / cost[FEW] for server, cost in costs.items()}
    figures = {
        server: {
            **{str(connections): round(figure) for connections, figure in cost.items()},
            "ratio": round(ratios[server], 3),
        }
        for server, cost in costs.items()
    }
    write_figures({**figures, "limit": LIMIT, "environment": environment}, args.out)
    passed = ratios["ring"] <= LIMIT
    print(
        f"{args.out}: on rings {ratios['ring']:.3f} times the cost, on epoll "
        f"{ratios['epoll']:.3f} times: {'passed' if passed else 'FAILED'}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
